package e2e

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sluice-gateway/sluice/internal/nettest"
	"github.com/sluice-gateway/sluice/test/e2e/stack"
)

// The network that exists already, and the part of it that members have.
const (
	lanServer = "192.168.10.5"
	lanSubnet = "192.168.10.128/26"
)

// plant is a virtual network that is a part of an existing one.
func plant(uplink string) string {
	return fmt.Sprintf(`kind: VirtualNetwork
name: plant
addressSpace: [%[1]s]
subnets: [{name: gateways, prefix: %[1]s, delegation: sluice/gateways}]
uplinks: [%[2]s]
---
kind: Gateway
name: corp-bi
vnet: plant
subnet: gateways
members: {min: 0, max: 1}
autoPause: never
`, lanSubnet, uplink)
}

const ranged = "addressing: {mode: range, network: 192.168.10.0/24, subnet: gateways}"

// standing is one kind of uplink: it prepares the device, and returns it with the uplink
// as an administrator writes it.
var standing = map[string]func(*testing.T, *far) (dev, uplink string){
	"a bridge": func(t *testing.T, f *far) (string, string) {
		dev := "e2eb" + f.id
		ip(t, "link", "add", dev, "type", "bridge")
		t.Cleanup(func() { ip(t, "link", "del", dev) })
		ip(t, "link", "set", f.near, "master", dev)
		ip(t, "link", "set", dev, "up")
		return dev, fmt.Sprintf("{name: lan, host: h1, bridge: %s, %s}", dev, ranged)
	},
	"a NIC": func(t *testing.T, f *far) (string, string) {
		ip(t, "link", "set", f.near, "alias", "to the plant")
		ip(t, "addr", "add", "203.0.113.9/32", "peer", "203.0.113.10/32", "dev", f.near)
		ip(t, "route", "add", "203.0.113.64/28", "via", "203.0.113.10", "dev", f.near, "table", "7707")
		return f.near, fmt.Sprintf("{name: lan, host: h1, device: %s, %s}", f.near, ranged)
	},
	"a VLAN": onVLAN,
	"a TUN": func(t *testing.T, f *far) (string, string) {
		dev := newTUN(t, f, "10.8.0.1/24")
		ip(t, "-n", f.ns, "route", "add", lanSubnet, "dev", dev)
		ip(t, "-n", f.ns, "addr", "del", lanServer+"/24", "dev", f.dev)
		ip(t, "-n", f.ns, "addr", "add", lanServer+"/32", "dev", "lo")
		return dev, fmt.Sprintf("{name: lan, host: h1, tun: %s, prefixes: [192.168.10.0/25], addressing: {mode: static}}", dev)
	},
}

// TestThroughAnUplink queries a server on a network that exists: as an address of that
// network, after a crash of service and host too; and the device is what it was, after
// the next crash and a cleanup.
func TestThroughAnUplink(t *testing.T) {
	t.Parallel()
	for name, stand := range standing {
		t.Run(name, func(t *testing.T) {
			busy.take(t)
			f := newFar(t, lanServer+"/24")
			dev, uplink := stand(t, f)
			before := nettest.Describe("", dev)
			s := stack.New(t)
			s.Up()
			s.Apply(plant(uplink) + f.source("plant", lanServer))
			wantAnswer(t, s, "plant", "select current_database()", "orders")
			member := holder(t, s)
			if got := f.callers(t); len(got) != 1 || got[0] != member.String() {
				t.Errorf("the server sees %v; want the leased address %s alone", got, member)
			}
			if !netip.MustParsePrefix(lanSubnet).Contains(member) {
				t.Errorf("the lease %s is not of the network's part %s", member, lanSubnet)
			}
			if name != "a TUN" {
				wantProxyARP(t, s, f, member)
			}
			check := s.Must("check", "-g", gateway, "--to", fmt.Sprintf("%s:%d", lanServer, f.pg.Port))
			if !strings.Contains(check, "rules: allowed") || !strings.Contains(check, "route: Uplink lan") || !strings.Contains(check, "probe: connected") {
				t.Errorf("the check says\n%s", check)
			}

			s.Stop("up", syscall.SIGKILL)
			s.Up()
			wantAnswer(t, s, "plant", "select host(inet_client_addr())", member.String())
			if now := holder(t, s); now != member {
				t.Errorf("the crash replaced the member at %s by one at %s", member, now)
			}

			s.Stop("up", syscall.SIGKILL)
			if out, err := s.Command("host", "cleanup", "--run-dir", s.Run).CombinedOutput(); err != nil {
				t.Fatalf("host cleanup: %v\n%s", err, out)
			}
			if diff := cmp.Diff(before, nettest.Describe("", dev)); diff != "" {
				t.Errorf("the device came back changed (-was +is):\n%s", diff)
			}
		})
	}
}

// wantProxyARP: the network knows the member by the MAC of the uplink, which says that it
// answers for that address.
func wantProxyARP(t *testing.T, s *stack.Stack, f *far, member netip.Addr) {
	t.Helper()
	status := s.Must("host", "status", "--run-dir", s.Run)
	if !strings.Contains(status, "ARP answer") || !strings.Contains(status, member.String()) {
		t.Errorf("the host's status has no ARP answer for %s:\n%s", member, status)
	}
	neigh, err := exec.Command("ip", "-n", f.ns, "neigh", "show", member.String()).CombinedOutput()
	fields := strings.Fields(string(neigh))
	at := -1
	for i, w := range fields {
		if w == "lladdr" {
			at = i + 1
		}
	}
	if err != nil || at < 0 {
		t.Fatalf("the network has no neighbour %s: %v\n%s", member, err, neigh)
	}
	links, err := exec.Command("ip", "-n", vnetSpace(t, s), "-o", "link").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(links)) {
		if strings.Contains(line, fields[at]) && strings.Contains(line, ": u") {
			return
		}
	}
	t.Errorf("%s answers for %s, which is no uplink:\n%s", fields[at], member, links)
}

// vnetSpace is the namespace of the installation's only virtual network.
func vnetSpace(t *testing.T, s *stack.Stack) string {
	t.Helper()
	out, err := exec.Command("ip", "netns", "list").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if name := strings.Fields(line)[0]; strings.HasPrefix(name, "sluice-"+s.Instance()+"-v-") {
			return name
		}
	}
	t.Fatalf("no virtual network of %s among\n%s", s.Instance(), out)
	return ""
}

// TestByDHCP queries as an address that the network's own DHCP server leases: the member
// has it while it runs, past a crash, and gives it back with the confirmed teardown; the
// next member may have it at once.
func TestByDHCP(t *testing.T) {
	waiting.take(t)
	f := newFar(t, lanServer+"/24")
	leases := f.serveDHCP(t, "192.168.10.140", "192.168.10.141") // one for the uplink, one for a member
	dev, uplink := standing["a bridge"](t, f)
	s := stack.New(t)
	s.Up()
	s.Apply(plant(strings.Replace(uplink, "mode: range", "mode: dhcp", 1)) + f.source("plant", lanServer))
	member, r := ask(s, "plant", "select host(inet_client_addr())")
	if r.Exit != 0 || holder(t, s).String() != member {
		t.Fatalf("the query came from %q, the member's address is %s: %s", member, holder(t, s), r.Err)
	}
	eventually(t, 10*time.Second, "the server has leased "+member, func() bool { return strings.Contains(leases(), " "+member+" ") })
	wantProxyARP(t, s, f, holder(t, s))
	if status := s.Must("host", "status", "--run-dir", s.Run); !strings.Contains(status, "DHCP lease") {
		t.Errorf("the host's status shows no lease:\n%s", status)
	}
	if table := s.Must("get", "leases"); !strings.Contains(table, member) {
		t.Errorf("the service has no lease of %s:\n%s", member, table)
	}

	s.Stop("up", syscall.SIGKILL)
	s.Up()
	wantAnswer(t, s, "plant", "select host(inet_client_addr())", member)
	s.Must("gateway", "pause", gateway)
	eventually(t, 10*time.Second, "the server has "+member+" back", func() bool { return !strings.Contains(leases(), " "+member+" ") })
	wantAnswer(t, s, "plant", "select host(inet_client_addr())", member)
	s.Must("gateway", "pause", gateway)

	f.endDHCP()
	_, r = ask(s, "plant", "select 1")
	wantFailure(t, r, 1, "wake", "uplink lan (bridge "+dev+"), subnet gateways: no DHCP server answered (for ")
}

// TestByDHCPWithoutTheService: a host that is killed and started again while there is no
// service extends what its members have leased, and they are the same when it is back.
func TestByDHCPWithoutTheService(t *testing.T) {
	waiting.take(t)
	f := newFar(t, lanServer+"/24")
	leases := f.serveDHCP(t, "192.168.10.140", "192.168.10.160", "--dhcp-option=option:T1,12", "--dhcp-option=option:T2,3000")
	_, uplink := standing["a bridge"](t, f)
	s := stack.New(t)
	s.Service()
	eventually(t, 60*time.Second, "the service answers", func() bool { return s.Sluice("get", "gateways").Exit == 0 })
	s.Host()
	s.Ready()
	s.Apply(plant(strings.Replace(uplink, "mode: range", "mode: dhcp", 1)) + f.source("plant", lanServer))
	wantAnswer(t, s, "plant", "select 1", "1")
	member, address := (&corp{Stack: s, t: t}).onlyMember().ID, holder(t, s).String()

	s.Stop("service", syscall.SIGTERM)
	s.Stop("host", syscall.SIGKILL)
	expiry := func() string { // "" without a lease
		for line := range strings.Lines(leases()) {
			if strings.Contains(line, " "+address+" ") {
				return strings.Fields(line)[0]
			}
		}
		return ""
	}
	var before string
	eventually(t, 60*time.Second, "the server has a lease of "+address, func() bool { before = expiry(); return before != "" })
	s.Host()
	eventually(t, 60*time.Second, "the lease is extended", func() bool { now := expiry(); return now != "" && now != before })
	s.Service()
	s.Ready()
	wantAnswer(t, s, "plant", "select host(inet_client_addr())", address)
	if now := (&corp{Stack: s, t: t}).onlyMember().ID; now != member {
		t.Errorf("member %s was replaced by %s", member, now)
	}
}
