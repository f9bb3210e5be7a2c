// Package hostnettest is the conformance suite of hostnet.Network: what its callers
// rely on, whichever implementation they have. Packets are each implementation's own
// tests' matter. Tests call it; nothing else does.
package hostnettest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// Machine makes Networks that stand on the same machine, one after the other, as
// processes of one installation do. It cleans up when its test ends.
type Machine func() hostnet.Network

// Run runs the suite; each test gets a machine of its own.
func Run(t *testing.T, newMachine func(t *testing.T) Machine) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, m Machine)
	}{
		{"NotUp", testNotUp},
		{"PortsComeAndGo", testPortsComeAndGo},
		{"RepeatChangesNothing", testRepeat},
		{"ProblemsOfOneObject", testProblems},
		{"Generations", testGenerations},
		{"NextProcess", testNextProcess},
		{"Resolvers", testResolvers},
		{"Tunnel", testTunnel},
		{"CleanUp", testCleanUp},
		{"CancelledSet", testCancelled},
		{"Prepared", testPrepared},
		{"PreparedByAnother", testPreparedByAnother},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.run(t, newMachine(t))
		})
	}
}

// VNet is a small virtual network with one subnet, "gateways".
func VNet(uid string) core.GoalVNet {
	return core.GoalVNet{
		UID: uid, Tenant: core.DefaultTenant, Name: uid,
		AddressSpace: []netip.Prefix{netip.MustParsePrefix("10.30.0.0/16")},
		Subnets:      []core.Subnet{{Name: "gateways", Prefix: netip.MustParsePrefix("10.30.4.0/24"), Delegation: core.DelegationGateways}},
	}
}

// Port is the i-th port of a VNet, i from 1 to 200, unique on a machine if i is.
func Port(vnet string, i int) hostnet.Port {
	return hostnet.Port{
		Member: fmt.Sprintf("m-%d", i), Generation: 1, VNetUID: vnet, Subnet: "gateways",
		Address:       netip.AddrFrom4([4]byte{10, 30, 4, byte(3 + i)}),
		TunnelAddress: netip.AddrFrom4([4]byte{169, 254, 2, byte(i)}),
	}
}

func up(t *testing.T, m Machine) hostnet.Network {
	t.Helper()
	n := m()
	if err := n.Up(bounded(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func config(vnets []core.GoalVNet, ports ...hostnet.Port) hostnet.Config {
	return hostnet.Config{VNets: vnets, Ports: ports}
}

func set(t *testing.T, n hostnet.Network, cfg hostnet.Config) hostnet.Status {
	t.Helper()
	s, err := n.Set(bounded(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// wantPorts fails the test unless exactly these ports are complete, without problems.
func wantPorts(t *testing.T, s hostnet.Status, ports ...hostnet.Port) {
	t.Helper()
	for _, p := range s.Problems {
		t.Errorf("problem: %s: %v", p.Object, p.Err)
	}
	paths := map[string]bool{}
	for _, p := range ports {
		path := s.Ports[p.Key()]
		if path == "" || paths[path] {
			t.Errorf("port %v has the path %q", p.Key(), path)
		}
		paths[path] = true
	}
	if len(s.Ports) != len(ports) {
		t.Errorf("%d ports are complete; want %d", len(s.Ports), len(ports))
	}
}

func testNotUp(t *testing.T, m Machine) {
	n := m()
	if _, err := n.Set(bounded(t), hostnet.Config{}); errs.ClassOf(err) != errs.Unavailable {
		t.Errorf("Set before Up: %v", err)
	}
	if _, err := n.TunnelListener(); errs.ClassOf(err) != errs.Unavailable {
		t.Errorf("TunnelListener before Up: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Errorf("Close before Up: %v", err)
	}
	if err := n.Up(bounded(t)); err == nil {
		t.Error("Up after Close did not fail")
	}
}

func testPortsComeAndGo(t *testing.T, m Machine) {
	n := up(t, m)
	if err := n.Up(bounded(t)); err != nil {
		t.Errorf("a second Up: %v", err)
	}
	vnets := []core.GoalVNet{VNet("red"), VNet("blue")}
	a, b, c := Port("red", 1), Port("red", 2), Port("blue", 3)
	c.Address = a.Address // another network, the same lease
	wantPorts(t, set(t, n, config(vnets)))
	wantPorts(t, set(t, n, config(vnets, a)), a)
	wantPorts(t, set(t, n, config(vnets, a, b, c)), a, b, c)
	wantLeft(t, n, a, b, c)
	wantPorts(t, set(t, n, config(vnets, b, c)), b, c)
	wantPorts(t, set(t, n, config(vnets[1:], c)), c)
	wantLeft(t, n, c)
	wantPorts(t, set(t, n, hostnet.Config{}))
	wantLeft(t, n)
	wantGone(t, n, a.Member, b.Member, c.Member, "VirtualNetwork red", "VirtualNetwork blue")
}

// wantLeft waits until of the three ports of testPortsComeAndGo, and of one that never was,
// only these are left.
func wantLeft(t *testing.T, n hostnet.Network, ports ...hostnet.Port) {
	t.Helper()
	var want, left []hostnet.PortKey
	for _, p := range ports {
		want = append(want, p.Key())
	}
	asked := []hostnet.PortKey{Port("red", 1).Key(), Port("red", 2).Key(), Port("blue", 3).Key(), Port("red", 4).Key()}
	for range 200 {
		var err error
		if left, err = n.Left(bounded(t), asked); err != nil {
			t.Fatal(err)
		}
		if slices.Equal(left, want) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("left of the ports: %v, not %v", left, want)
}

// wantGone waits until the inventory knows nothing of these; removing may take a while.
func wantGone(t *testing.T, n hostnet.Network, words ...string) {
	t.Helper()
	var left []hostnet.Item
	for range 200 {
		items, err := n.Inventory(bounded(t))
		if err != nil {
			t.Fatal(err)
		}
		left = slices.DeleteFunc(items, func(i hostnet.Item) bool {
			return !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(i.Why+" ", w+" ") })
		})
		if len(left) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("still there: %v", left)
}

func testRepeat(t *testing.T, m Machine) {
	n := up(t, m)
	cfg := config([]core.GoalVNet{VNet("red")}, Port("red", 1), Port("red", 2))
	first := set(t, n, cfg)
	wantPorts(t, first, cfg.Ports...)
	for range 3 {
		if d := cmp.Diff(first, set(t, n, cfg)); d != "" {
			t.Errorf("a repeated Set changed the status:\n%s", d)
		}
	}
}

func testProblems(t *testing.T, m Machine) {
	n := up(t, m)
	vnets := []core.GoalVNet{VNet("red")}
	good, nowhere, outside, subnet, twin := Port("red", 1), Port("nowhere", 2), Port("red", 3), Port("red", 4), Port("red", 5)
	outside.Address = netip.MustParseAddr("10.99.0.4")
	subnet.Subnet = "unknown"
	twin.Address = good.Address
	s := set(t, n, config(vnets, good, nowhere, outside, subnet, twin))
	if len(s.Ports) != 1 || s.Ports[good.Key()] == "" {
		t.Errorf("complete ports: %v; want that of %s alone", s.Ports, good.Member)
	}
	var objects []string
	for _, p := range s.Problems {
		objects = append(objects, p.Object)
		if p.Err == nil {
			t.Errorf("the problem of %s has no reason", p.Object)
		}
	}
	slices.Sort(objects)
	if d := cmp.Diff([]string{"member m-2", "member m-3", "member m-4", "member m-5"}, objects); d != "" {
		t.Errorf("problems (-want +got):\n%s", d)
	}
	wantPorts(t, set(t, n, config(vnets, good)), good)
}

// testGenerations: the next generation takes over the addresses of the one before.
func testGenerations(t *testing.T, m Machine) {
	n := up(t, m)
	vnets := []core.GoalVNet{VNet("red")}
	old := Port("red", 1)
	next := old
	next.Generation = 2
	before := set(t, n, config(vnets, old))
	after := set(t, n, config(vnets, next))
	wantPorts(t, after, next)
	if before.Ports[old.Key()] == after.Ports[next.Key()] {
		t.Error("two generations have the same namespace")
	}
	wantGone(t, n, old.Member+" generation 1")
}

func testNextProcess(t *testing.T, m Machine) {
	vnets := []core.GoalVNet{VNet("red")}
	a, b := Port("red", 1), Port("red", 2)
	n := up(t, m)
	before := set(t, n, config(vnets, a, b))
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Set(bounded(t), config(vnets)); err == nil {
		t.Error("Set after Close did not fail")
	}
	n = up(t, m)
	after := set(t, n, config(vnets, b))
	wantPorts(t, after, b)
	if before.Ports[b.Key()] != after.Ports[b.Key()] {
		t.Errorf("the port moved from %s to %s", before.Ports[b.Key()], after.Ports[b.Key()])
	}
	wantGone(t, n, a.Member)
}

func testResolvers(t *testing.T, m Machine) {
	n := up(t, m)
	set(t, n, config([]core.GoalVNet{VNet("red")}))
	want := []netip.AddrPort{netip.MustParseAddrPort("10.30.4.2:53"), netip.MustParseAddrPort("10.30.4.3:53")}
	if got := n.Resolvers("red", "gateways"); !slices.Equal(got, want) {
		t.Errorf("got %v; want %v", got, want)
	}
	if got := append(n.Resolvers("red", "unknown"), n.Resolvers("unknown", "gateways")...); got != nil {
		t.Errorf("an unknown subnet has %v", got)
	}
}

func testTunnel(t *testing.T, m Machine) {
	n := up(t, m)
	l, err := n.TunnelListener()
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Addr().String(); got != n.TunnelEndpoint().String() {
		t.Errorf("it listens on %s and members dial %s", got, n.TunnelEndpoint())
	}
	ended := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	n.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept ended with %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Close did not end Accept")
	}
}

func testCleanUp(t *testing.T, m Machine) {
	n := up(t, m)
	set(t, n, config([]core.GoalVNet{VNet("red")}, Port("red", 1)))
	if items, err := n.Inventory(bounded(t)); err != nil || len(items) < 3 {
		t.Errorf("the inventory is %v, %v", items, err)
	}
	n.Close()
	for range 2 {
		n = m()
		if err := n.CleanUp(bounded(t)); err != nil {
			t.Fatal(err)
		}
		if items, err := n.Inventory(bounded(t)); err != nil || len(items) != 0 {
			t.Errorf("after CleanUp the inventory is %v, %v", items, err)
		}
	}
	wantPorts(t, set(t, up(t, m), config([]core.GoalVNet{VNet("red")}, Port("red", 1))), Port("red", 1))
}

func testCancelled(t *testing.T, m Machine) {
	n := up(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Set(ctx, hostnet.Config{}); errs.ClassOf(err) != errs.Cancelled {
		t.Errorf("Set with a context that is over: %v", err)
	}
}
