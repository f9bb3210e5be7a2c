package linux

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/nettest"
)

// The network that exists already: a server, a router to an office, a neighbour. The
// uplinks' subnet is a part of it.
const (
	lanNetwork = "192.168.10.0/24"
	lanServer  = "192.168.10.5"
	lanRouter  = "192.168.10.1"
	lanHost    = "192.168.10.9" // the lab's own host, where it is a part of that network
	lanOffice  = "10.99.0.1"    // behind the router
	lanSubnet  = "192.168.10.128/26"
)

// newLAN makes that network, and returns its path; the host's way to it is lan0.
func newLAN(l *lab) string {
	l.t.Helper()
	lan := l.space("lan")
	l.ip(l.host, "link", "add", "lan0", "type", "veth", "peer", "name", "lan0", "netns", filepath.Base(lan))
	l.ip(lan, "link", "set", "lan0", "up")
	l.ip(l.host, "link", "set", "lan0", "up")
	lanAddresses(l, lan, "lan0")
	serveIn(l.t, lan, "0.0.0.0:80", "lan")
	serveIn(l.t, lan, "0.0.0.0:81", "other")
	return lan
}

func lanAddresses(l *lab, lan, dev string) {
	in(l.t, lan, func() error { // the office is behind the router, and not near
		return writeAll([]sysctl{{key: "ipv4/conf/all/arp_ignore", value: "1"}})
	})
	l.ip(lan, "addr", "add", lanServer+"/24", "dev", dev)
	l.ip(lan, "addr", "add", lanRouter+"/24", "dev", dev)
	l.ip(lan, "addr", "add", lanOffice+"/32", "dev", "lo")
}

// onLAN is an uplink whose leases are a part of the network.
func onLAN(change func(*core.Uplink)) core.GoalUplink {
	u := core.GoalUplink{Here: true, Uplink: core.Uplink{
		Name: "plant", Host: "h", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")},
		Addressing: core.UplinkAddressing{
			Mode: core.AddressingRange, Network: netip.MustParsePrefix(lanNetwork), Gateway: netip.MustParseAddr(lanRouter), Subnet: "gateways",
		},
	}}
	change(&u.Uplink)
	return u
}

// behindRouter is an uplink that the network has a route to the members through.
func behindRouter(u *core.Uplink) {
	u.Addressing.Mode, u.Addressing.Subnet = core.AddressingStatic, ""
	u.Addressing.Address = netip.MustParseAddr("192.168.10.20")
}

func onDevice(u *core.Uplink) { u.Device = "lan0" }
func onBridge(u *core.Uplink) { u.Bridge = "hbr0" }

// plant is a virtual network that is joined to the existing one.
func plant(uid string, uplinks ...core.GoalUplink) core.GoalVNet {
	return core.GoalVNet{
		UID: uid, Tenant: core.DefaultTenant, Name: "plant", AddressSpace: []netip.Prefix{netip.MustParsePrefix(lanSubnet)},
		Subnets: []core.Subnet{{Name: "gateways", Prefix: netip.MustParsePrefix(lanSubnet), NSG: "gateways"}},
		NSGs: []core.NetworkSecurityGroup{{Name: "gateways", Rules: []core.SecurityRule{
			{Name: "not-81", Priority: 100, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolTCP,
				Destination: []string{lanServer}, DestinationPorts: []string{"81"}},
			{Name: "known", Priority: 200, Direction: core.Outbound, Access: core.Allow, Protocol: core.ProtocolAny,
				Destination: []string{"VirtualNetwork"}},
			{Name: "nothing-else", Priority: 300, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolAny},
		}}},
		Uplinks: uplinks,
	}
}

func plantMember(g core.GoalVNet, i int) hostnet.Port {
	p := member(g, i, i)
	p.Address = nth(netip.MustParsePrefix(lanSubnet), uint32(3+i))
	return p
}

// hostBridge makes a bridge of the host, with lan0 and an address of the host's own.
func hostBridge(l *lab) {
	l.ip(l.host, "link", "add", "hbr0", "type", "bridge")
	l.ip(l.host, "link", "set", "lan0", "master", "hbr0")
	l.ip(l.host, "link", "set", "hbr0", "up")
	l.ip(l.host, "addr", "add", lanHost+"/24", "dev", "hbr0")
}

func TestUplinkReachesTheNetwork(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(*lab, string)
		uplink  core.GoalUplink
	}{
		"a NIC":                     {func(*lab, string) {}, onLAN(onDevice)},
		"a NIC of a routed network": {routeBack, onLAN(func(u *core.Uplink) { onDevice(u); behindRouter(u) })},
		"a bridge":                  {func(l *lab, _ string) { hostBridge(l) }, onLAN(onBridge)},
		"a VLAN":                    {vlanLAN, onLAN(onVLAN)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			lan := newLAN(l)
			c.prepare(l, lan)
			g := plant("u1", c.uplink)
			m := plantMember(g, 1)
			n := l.up()
			at := portOf(t, l.set(n, hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{m}}), m)
			wantGreeting(t, at, lanServer+":80", "lan "+m.Address.String())
			wantGreeting(t, at, lanOffice+":80", "lan "+m.Address.String())
			wantSilence(t, at, lanServer+":81") // the NSG
			serveIn(t, at, "0.0.0.0:9000", "member")
			wantSilence(t, lan, m.Address.String()+":9000") // members begin flows, nobody else
			wantConnected(t, lan, l, n)
		})
	}
}

func routeBack(l *lab, lan string) { l.ip(lan, "route", "add", lanSubnet, "via", "192.168.10.20") }

// vlanLAN moves the network's addresses to VLAN 7, if the kernel has VLANs.
func vlanLAN(l *lab, lan string) {
	l.ip(lan, "addr", "flush", "dev", "lan0")
	if !l.tries(lan, "link", "add", "link", "lan0", "name", "lan7", "type", "vlan", "id", "7") {
		l.t.Skip("this kernel has no VLAN devices")
	}
	l.ip(lan, "link", "set", "lan7", "up")
	l.ip(lan, "addr", "add", lanServer+"/24", "dev", "lan7")
	l.ip(lan, "addr", "add", lanRouter+"/24", "dev", "lan7")
}

// wantConnected: nothing that answers in V is reached from the network, its own uplink
// address and its resolver among it.
func wantConnected(t *testing.T, lan string, l *lab, n *Network) {
	t.Helper()
	v := n.vnets["u1"]
	own := v.uplinkAddress(v.goal.Uplinks[0].Uplink)
	for _, a := range v.resolvers() {
		l.tries(lan, "route", "add", a.String(), "via", own.String())
		wantRefusal(t, lan, a.String()+":53")
	}
	wantRefusal(t, lan, own.String()+":53")
}

func (l *lab) tries(ns string, args ...string) bool {
	return exec.Command("ip", append([]string{"-n", filepath.Base(ns)}, args...)...).Run() == nil
}

func TestUplinkThroughTUN(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := l.space("lan")
	nettest.JoinTUN(t, l.host, lan, "vpn0")
	l.ip(l.host, "addr", "add", "10.8.0.2/24", "dev", "vpn0")
	l.ip(l.host, "link", "set", "vpn0", "up")
	lanAddresses(l, lan, "vpn0")
	l.ip(lan, "link", "set", "vpn0", "up")
	l.ip(lan, "route", "add", lanSubnet, "dev", "vpn0")
	serveIn(t, lan, "0.0.0.0:80", "lan")
	u := onLAN(func(u *core.Uplink) {
		u.TUN, u.Addressing = "vpn0", core.UplinkAddressing{Mode: core.AddressingStatic}
		u.Prefixes = append(u.Prefixes, netip.MustParsePrefix(lanNetwork))
	})
	g := plant("u1", u)
	m := plantMember(g, 1)
	before := l.describe("vpn0")
	n := l.up()
	at := portOf(t, l.set(n, hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{m}}), m)
	wantGreeting(t, at, lanServer+":80", "lan "+m.Address.String())
	wantGreeting(t, at, lanOffice+":80", "lan "+m.Address.String())
	l.set(n, hostnet.Config{})
	if diff := cmp.Diff(before, l.describe("vpn0")); diff != "" {
		t.Errorf("the VPN's device came back changed (-was +is):\n%s", diff)
	}
}

// describe tells how a device of the host is, with its sysctl values.
func (l *lab) describe(dev string) []string {
	l.t.Helper()
	out := nettest.Describe(l.host, dev)
	in(l.t, l.host, func() error {
		conf := readConf(dev)
		for _, key := range sortedKeys(conf) {
			out = append(out, key+" = "+conf[key])
		}
		return nil
	})
	return out
}

// decorate gives lan0 all that a device of a host may have.
func decorate(l *lab) {
	l.ip(l.host, "link", "set", "lan0", "mtu", "1400", "alias", "to the plant")
	l.ip(l.host, "addr", "add", "192.168.10.33/24", "dev", "lan0")
	l.ip(l.host, "addr", "add", "192.168.11.33/24", "dev", "lan0", "label", "lan0:x")
	l.ip(l.host, "route", "add", "10.77.0.0/16", "via", lanRouter, "metric", "50")
	l.ip(l.host, "route", "add", "10.78.0.0/16", "dev", "lan0", "table", "77")
	l.ip(l.host, "addr", "add", "fd00:10::33/64", "dev", "lan0", "nodad")
	l.ip(l.host, "route", "add", "fd00:77::/32", "via", "fd00:10::1")
	in(l.t, l.host, func() error {
		return writeAll([]sysctl{{key: forwardingKey("lan0"), value: "1"}, {key: "ipv4/conf/lan0/rp_filter", value: "2"}})
	})
}

func TestUplinkGivesTheDeviceBack(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*testing.T, *lab, *Network, hostnet.Config){
		"the network is deleted": func(_ *testing.T, l *lab, n *Network, _ hostnet.Config) { l.set(n, hostnet.Config{}) },
		"the uplink is removed": func(_ *testing.T, l *lab, n *Network, cfg hostnet.Config) {
			cfg.VNets[0].Uplinks = nil
			l.set(n, cfg)
		},
		"cleanup": func(t *testing.T, l *lab, n *Network, _ hostnet.Config) {
			if err := n.CleanUp(l.ctx()); err != nil {
				t.Error(err)
			}
		},
		"a crash, and cleanup": func(t *testing.T, l *lab, n *Network, _ hostnet.Config) {
			if err := errorsOf(n.Close(), again(t, l).CleanUp(l.ctx())); err != nil {
				t.Error(err)
			}
		},
		"a crash, and a start without the network": func(t *testing.T, l *lab, n *Network, _ hostnet.Config) {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
			l.set(l.up(), hostnet.Config{})
		},
		"a crash while it was taken": func(t *testing.T, l *lab, n *Network, cfg hostnet.Config) {
			l.set(n, hostnet.Config{})
			link, err := n.host.nl.LinkByName("lan0")
			if err != nil {
				t.Fatal(err)
			}
			rec := n.recordOf(cfg.VNets[0], cfg.VNets[0].Uplinks[0].Uplink)
			rec.Lent, err = n.host.lend(link)
			if err := errorsOf(err, n.uplinkRecords().put(rec), n.Close()); err != nil {
				t.Fatal(err)
			}
			l.ip(l.host, "link", "set", "lan0", "down")
			l.ip(l.host, "link", "set", "lan0", "name", rec.Link)
			if err := again(t, l).CleanUp(l.ctx()); err != nil {
				t.Error(err)
			}
		},
		"a crash while it was given back": func(t *testing.T, l *lab, n *Network, _ hostnet.Config) {
			link := n.names.uplinkLink("u1", "plant")
			space := n.names.vnet("u1")
			if err := n.Close(); err != nil {
				t.Error(err)
			}
			l.ip(filepath.Join(netnsDir, space), "link", "set", link, "down")
			l.ip(filepath.Join(netnsDir, space), "link", "set", link, "netns", filepath.Base(l.host))
			if err := again(t, l).CleanUp(l.ctx()); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			newLAN(l)
			decorate(l)
			before := l.describe("lan0")
			g := plant("u1", onLAN(onDevice))
			m := plantMember(g, 1)
			n := l.up()
			cfg := hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{m}}
			at := portOf(t, l.set(n, cfg), m)
			wantGreeting(t, at, lanServer+":80", "lan "+m.Address.String())
			if l.tries(l.host, "link", "show", "lan0") {
				t.Fatal("the host has lan0 still")
			}
			end(t, l, n, cfg)
			if diff := cmp.Diff(before, l.describe("lan0")); diff != "" {
				t.Errorf("the device came back changed (-was +is):\n%s", diff)
			}
			wantGreeting(t, l.host, lanServer+":80", "lan 192.168.10.33")
			if _, err := os.Stat(n.uplinkRecords().file); !isNotExist(err) {
				t.Errorf("the record of the uplink is there still: %v", err)
			}
		})
	}
}

// again is a process after the one that crashed.
func again(t *testing.T, l *lab) *Network {
	t.Helper()
	n, err := New(l.options())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func errorsOf(list ...error) error {
	for _, err := range list {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestUplinkOutlivesARestart: a flow goes on while the process is another one.
func TestUplinkOutlivesARestart(t *testing.T) {
	t.Parallel()
	for name, on := range map[string]func(*core.Uplink){"a NIC": onDevice, "a bridge": onBridge, "a VLAN": onVLAN} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			lan := newLAN(l)
			switch name {
			case "a bridge":
				hostBridge(l)
			case "a VLAN":
				vlanLAN(l, lan)
			}
			g := plant("u1", onLAN(on))
			m := plantMember(g, 1)
			cfg := hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{m}}
			n := l.up()
			at := portOf(t, l.set(n, cfg), m)
			c, err := dialIn(t, at, lanServer+":80", 3*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := line(c); err != nil {
				t.Fatal(err)
			}
			echo(t, c, "before")
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			l.set(l.up(), cfg)
			echo(t, c, "after")
		})
	}
}

// TestUplinkAnswersARPForLeasesOnly asks from the network, while a lease comes and goes.
func TestUplinkAnswersARPForLeasesOnly(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := newLAN(l)
	hostBridge(l)
	l.ip(l.host, "link", "add", "hbr1", "type", "bridge")
	l.ip(l.host, "link", "set", "hbr1", "up")
	l.ip(lan, "route", "add", "172.16.5.0/24", "dev", "lan0") // which believes that to be near
	g := plant("u1", onLAN(onBridge), onLAN(func(u *core.Uplink) {
		u.Name, u.Bridge, u.Prefixes = "far", "hbr1", nil
		u.Addressing = core.UplinkAddressing{
			Mode: core.AddressingStatic, Network: netip.MustParsePrefix("172.16.5.0/24"), Address: netip.MustParseAddr("172.16.5.2"),
		}
	}))
	first, second := plantMember(g, 1), plantMember(g, 2)
	n := l.up()
	cfg := hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{first}}
	l.set(n, cfg)
	mac := n.names.mac("uplink", "u1", "plant", "vnet").String()
	want := map[string]string{
		first.Address.String(): mac, "192.168.10.129": mac, // its own
		second.Address.String(): "", "192.168.10.130": "", "192.168.10.150": "", "192.168.10.200": "",
		"172.16.5.2": "", "172.16.5.9": "", // the other uplink's own, and what lies behind it
	}
	wantARP(t, l, lan, want)
	wantProxies(t, l, n, first.Address)
	items, err := n.Inventory(l.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprint(items); !contains(text, "uplink plant of VirtualNetwork plant: bridge hbr0", "ARP answer", first.Address.String(), n.names.bridgeTable()) {
		t.Errorf("the inventory does not say what the uplink made: %s", text)
	}
	cfg.Ports = []hostnet.Port{second}
	l.set(n, cfg)
	want[first.Address.String()], want[second.Address.String()] = "", mac
	wantARP(t, l, lan, want)
	wantProxies(t, l, n, second.Address)
	port := n.names.bridgePort("u1", "plant")
	l.ip(l.host, "link", "set", port, "down") // the uplink loses its carrier, and finds it again
	l.ip(l.host, "link", "set", port, "up")
	wantProxies(t, l, n, second.Address)
}

// wantProxies compares what the kernel was told to answer for.
func wantProxies(t *testing.T, l *lab, n *Network, want netip.Addr) {
	t.Helper()
	got := strings.Fields(l.ip(filepath.Join(netnsDir, n.names.vnet("u1")), "neigh", "show", "proxy"))
	if len(got) == 0 || got[0] != want.String() || strings.Count(strings.Join(got, " "), "dev") != 1 {
		t.Errorf("ARP is answered for %v; want %s alone", got, want)
	}
}

// wantARP compares who answers for an address; "" for nobody.
func wantARP(t *testing.T, l *lab, lan string, want map[string]string) {
	t.Helper()
	l.ip(lan, "neigh", "flush", "all")
	var work sync.WaitGroup
	defer work.Wait()
	for a, mac := range want {
		work.Go(func() {
			if got := whoHas(t, l, lan, a); got != mac {
				t.Errorf("ARP for %s: %q answers; want %q", a, got, mac)
			}
		})
	}
}

func whoHas(t *testing.T, l *lab, lan, a string) string {
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		in(t, lan, func() error {
			c, err := net.Dial("udp4", a+":9")
			if err == nil {
				_, _ = c.Write([]byte("?"))
				c.Close()
			}
			return nil
		})
		time.Sleep(100 * time.Millisecond)
		fields := strings.Fields(l.ip(lan, "neigh", "show", a))
		for i, f := range fields {
			switch {
			case f == "lladdr" && !strings.Contains(strings.Join(fields, " "), "FAILED"):
				return fields[i+1]
			case f == "FAILED":
				return ""
			}
		}
	}
	t.Errorf("ARP for %s never came to an end", a)
	return ""
}

// TestUplinkLeavesTheHostAlone: neither by the bridge's own address nor as a router.
func TestUplinkLeavesTheHostAlone(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := newLAN(l)
	hostBridge(l)
	serveIn(t, l.host, "0.0.0.0:22", "ssh")
	serveIn(t, l.world, labWorldAddr+":80", "world")
	in(t, l.host, func() error { return writeAll([]sysctl{{key: "ipv4/ip_forward", value: "1"}}) })
	l.ip(l.world, "route", "add", "192.168.10.0/24", "via", labHostAddr)
	u := onLAN(onBridge)
	u.Addressing.Gateway = netip.MustParseAddr(lanHost)
	u.Prefixes = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	g := plant("u1", u)
	m := plantMember(g, 1)
	n := l.up()
	cfg := hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{m}}
	at := portOf(t, l.set(n, cfg), m)
	wantGreeting(t, lan, lanHost+":22", "ssh "+lanServer) // it is there, for the network
	wantGreeting(t, at, lanServer+":80", "lan "+m.Address.String())
	wantRefusal(t, at, lanHost+":22")
	wantRefusal(t, at, labWorldAddr+":80")
	l.set(n, hostnet.Config{})
	n.reaper.wait()
	if text := nft(t, l.host, "list", "tables"); strings.Contains(text, n.names.bridgeTable()) {
		t.Errorf("without an uplink the host has the table still: %s", text)
	}
}

// TestUplinkSpoofing: what comes in by an uplink has an address that lies behind it.
func TestUplinkSpoofing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := newLAN(l)
	g := plant("u1", onLAN(onDevice))
	a, b := plantMember(g, 1), plantMember(g, 2)
	n := l.up()
	s := l.set(n, hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{a, b}})
	server := listenUDPIn(t, portOf(t, s, b), netip.AddrPortFrom(b.Address, 9000))
	space := filepath.Join(netnsDir, n.names.vnet("u1"))
	before := counter(t, space, "spoofed")
	link, err := n.vnets["u1"].at.nl.LinkByName(n.names.uplinkLink("u1", "plant"))
	if err != nil {
		t.Fatal(err)
	}
	l.ip(lan, "neigh", "replace", b.Address.String(), "lladdr", link.Attrs().HardwareAddr.String(), "dev", "lan0") // ARP would be no help
	for _, from := range []string{a.Address.String(), "203.0.113.7"} {
		l.ip(lan, "addr", "add", from+"/32", "dev", "lo")
		in(t, lan, func() error {
			c, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}).Dial("udp4", server.LocalAddr().String())
			if err == nil {
				_, err = c.Write([]byte("spoofed"))
				c.Close()
			}
			return err
		})
	}
	deadline := time.Now().Add(10 * time.Second)
	for counter(t, space, "spoofed") < before+2 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	if got := counter(t, space, "spoofed"); got < before+2 {
		t.Errorf("%d spoofed packets were dropped as such; want 2", got-before)
	}
	server.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if k, from, err := server.ReadFromUDPAddrPort(make([]byte, 64)); err == nil {
		t.Errorf("a member got %d bytes from %s", k, from)
	}
}
