package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/hostnet/linux"
)

const (
	fabricHost  = "198.18.0.1" // the benchmark's stand-in for the host's namespace
	fabricWorld = "198.18.0.2" // what is beyond it
)

// fabric is a host's network without a host: namespaces of its own stand for the host
// and for the world, so that nothing of this machine's network takes part.
type fabric struct {
	id          string
	net         *linux.Network
	host, world string
}

// newFabric makes the namespaces. Rules past bucketsFrom per direction are compiled to
// buckets; 0 is the default.
func newFabric(t *tb, bucketsFrom int) (*fabric, error) {
	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails
	instance := hex.EncodeToString(id[:])
	f := &fabric{id: instance}
	state, err := os.MkdirTemp("", "sluice-bench-net-")
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = os.RemoveAll(state) })
	if f.host, err = space(t, "sluicebench-"+instance+"-h"); err != nil {
		return nil, err
	}
	if f.world, err = space(t, "sluicebench-"+instance+"-w"); err != nil {
		return nil, err
	}
	if err := connect("up0", f.host, fabricHost, f.world, fabricWorld); err != nil {
		return nil, err
	}
	if err := ip(f.host, "route", "add", "default", "via", fabricWorld); err != nil {
		return nil, err
	}
	f.net, err = linux.New(linux.Options{
		Instance: instance, StateDir: state, HostNS: f.host, BucketsFrom: bucketsFrom, FlowLogDir: filepath.Join(state, "flowlogs"),
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if err := f.net.CleanUp(context.Background()); err != nil {
			t.Errorf("%v", err)
		}
	})
	return f, f.net.Up(context.Background())
}

// space makes a network namespace and returns its path.
func space(t *tb, name string) (string, error) {
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		return "", fmt.Errorf("ip netns add: %w: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	path := "/run/netns/" + name
	return path, ip(path, "link", "set", "lo", "up")
}

// connect joins two namespaces with a veth pair.
func connect(link, a, addrA, b, addrB string) error {
	err := ip(a, "link", "add", link, "type", "veth", "peer", "name", link, "netns", filepath.Base(b))
	for _, end := range [][2]string{{a, addrA}, {b, addrB}} {
		if err == nil {
			err = ip(end[0], "addr", "add", end[1]+"/24", "dev", link)
		}
		if err == nil {
			err = ip(end[0], "link", "set", link, "up")
		}
	}
	return err
}

// bareWay makes as many namespaces as a member's packets pass on their way to the world,
// joined by veth pairs and forwarding, with nothing else in them. It returns the first,
// the last, and an address of the last.
func bareWay(t *tb, id string) (from, to, addr string, err error) {
	const hops = 4 // member – network – NAT gateway – host – world
	at := make([]string, hops+1)
	for i := range at {
		if at[i], err = space(t, fmt.Sprintf("sluicebench-%s-%d", id, i)); err != nil {
			return "", "", "", err
		}
		err = inside(at[i], func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
		if err != nil {
			return "", "", "", err
		}
	}
	near := func(i int) string { return fmt.Sprintf("198.18.%d.1", 10+i) } // ends of the i-th pair
	far := func(i int) string { return fmt.Sprintf("198.18.%d.2", 10+i) }
	for i := range hops {
		if err == nil {
			err = connect(fmt.Sprint("v", i), at[i], near(i), at[i+1], far(i))
		}
	}
	for i := range hops {
		if err == nil && i < hops-1 {
			err = ip(at[i], "route", "add", "default", "via", far(i))
		}
		if err == nil && i > 0 {
			err = ip(at[i+1], "route", "add", near(0), "via", near(i))
		}
	}
	return at[0], at[hops], far(hops - 1), err
}

func ip(space string, args ...string) error {
	out, err := exec.Command("ip", append([]string{"-n", filepath.Base(space)}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// set makes the network equal to a description, and returns the members' namespaces.
func (f *fabric) set(ctx context.Context, g core.GoalVNet, ports ...hostnet.Port) ([]string, error) {
	status, err := f.net.Set(ctx, hostnet.Config{VNets: []core.GoalVNet{g}, Ports: ports})
	if err != nil {
		return nil, err
	}
	for _, p := range status.Problems {
		return nil, fmt.Errorf("%s: %w", p.Object, p.Err)
	}
	var paths []string
	for _, p := range ports {
		paths = append(paths, status.Ports[p.Key()])
	}
	return paths, nil
}

// network is a virtual network with one subnet for members, rules outbound, and a NAT
// gateway. Without rules it has no NSG.
func network(rules []core.SecurityRule) core.GoalVNet {
	g := core.GoalVNet{
		UID: "bench", Tenant: core.DefaultTenant, Name: "bench",
		AddressSpace: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")},
		Subnets: []core.Subnet{{
			Name: "gateways", Prefix: netip.MustParsePrefix("10.20.0.0/24"), Delegation: core.DelegationGateways, NATGateway: "egress",
		}},
		NATGateways: []core.GoalNATGateway{{UID: "bench-egress", NATGateway: core.NATGateway{
			Name: "egress", VNet: "bench", PublicAddresses: []string{"host"}, IdleTimeout: core.Duration(4 * time.Minute),
		}}},
	}
	if rules != nil {
		g.NSGs = []core.NetworkSecurityGroup{{Name: "rules", Rules: rules}}
		g.Subnets[0].NSG = "rules"
	}
	return g
}

// rules are n that deny something else, with ports and prefixes as people have them, and
// one that allows the rest. turn changes one of them.
func rules(n, turn int) []core.SecurityRule {
	out := make([]core.SecurityRule, 0, n+1)
	for i := range n {
		r := core.SecurityRule{
			Name: fmt.Sprintf("rule-%d", i), Priority: 100 + i, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolTCP,
			Destination: []string{fmt.Sprintf("10.%d.%d.0/24", i%7+30, i%250)}, DestinationPorts: []string{fmt.Sprint(6000 + 7*i)},
		}
		if i == n/2 {
			r.Destination = []string{fmt.Sprintf("10.40.%d.0/24", turn%250)}
		}
		out = append(out, r)
	}
	return append(out, core.SecurityRule{
		Name: "rest", Priority: 4000, Direction: core.Outbound, Access: core.Allow, Protocol: core.ProtocolAny,
	})
}

// port is the i-th member's place.
func port(i byte) hostnet.Port {
	return hostnet.Port{
		Member: fmt.Sprintf("m-%d", i), Generation: 1, VNetUID: "bench", Subnet: "gateways",
		Address: netip.AddrFrom4([4]byte{10, 20, 0, 3 + i}), TunnelAddress: netip.AddrFrom4([4]byte{169, 254, 7, i}),
	}
}

// inside runs f on a thread in a namespace. The thread ends with f.
func inside(space string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocks: the runtime then ends the thread
		done <- func() error {
			ns, err := os.Open(space)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter %s: %w", space, err)
			}
			return f()
		}()
	}()
	return <-done
}

// listenIn listens on a TCP address in a namespace.
func listenIn(space, addr string) (l *net.TCPListener, err error) {
	err = inside(space, func() error {
		at, err := net.ResolveTCPAddr("tcp4", addr)
		if err == nil {
			l, err = net.ListenTCP("tcp4", at)
		}
		return err
	})
	return l, err
}
