package linux

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// open lets members of the corp network talk to each other on every port.
func open(g core.GoalVNet) core.GoalVNet {
	g = cloneVNet(g)
	g.NSGs[0].Rules = nil
	return g
}

func TestRestartKeepsConnections(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.world, labWorldAddr+":80", "world")
	net := open(corp("u1"))
	a, b := member(net, 1, 1), member(net, 2, 2)
	cfg := hostnet.Config{VNets: []core.GoalVNet{net}, Ports: []hostnet.Port{a, b}}
	first := l.up()
	s := l.set(first, cfg)
	at := portOf(t, s, a)
	serveIn(t, portOf(t, s, b), "10.20.0.5:9000", "neighbour")
	inside := mustDial(t, at, "10.20.0.5:9000")
	outside := mustDial(t, at, labWorldAddr+":80")
	transit := first.vnets["u1"].nats["u1-egress"].transit
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	echo(t, inside, "while nobody is home")

	second := l.up()
	before := l.ip(at, "-o", "link")
	l.set(second, cfg)
	if after := l.ip(at, "-o", "link"); after != before {
		t.Errorf("a complete port was touched:\n%s", cmp.Diff(before, after))
	}
	echo(t, inside, "after the restart")
	echo(t, outside, "after the restart, through NAT")
	if now := second.vnets["u1"].nats["u1-egress"].transit; now != transit {
		t.Errorf("the NAT gateway's transit address went from %s to %s", transit, now)
	}
	wantGreeting(t, at, labWorldAddr+":80", "world "+labHostAddr)
	cfg.Ports = append(cfg.Ports, member(net, 3, 3))
	l.set(second, cfg)
	echo(t, inside, "after another port came")
}

func mustDial(t *testing.T, path, addr string) net.Conn {
	t.Helper()
	c, err := dialIn(t, path, addr, 2*time.Second)
	if err == nil {
		_, err = line(c)
	}
	if err != nil {
		t.Fatalf("dialling %s: %v", addr, err)
	}
	return c
}

// TestHalfMadeIsRepaired takes away what a crash could have left undone, object by
// object, and lets a new process find the rest.
func TestHalfMadeIsRepaired(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(l *lab, n *Network, at string, p hostnet.Port){
		"no eth0":       func(l *lab, n *Network, at string, p hostnet.Port) { l.ip(at, "link", "del", "eth0") },
		"no tun0":       func(l *lab, n *Network, at string, p hostnet.Port) { l.ip(at, "link", "del", "tun0") },
		"eth0 down":     func(l *lab, n *Network, at string, p hostnet.Port) { l.ip(at, "link", "set", "eth0", "down") },
		"no address":    func(l *lab, n *Network, at string, p hostnet.Port) { l.ip(at, "addr", "flush", "dev", "eth0") },
		"no default":    func(l *lab, n *Network, at string, p hostnet.Port) { l.ip(at, "route", "flush", "default") },
		"no neighbours": func(l *lab, n *Network, at string, p hostnet.Port) { l.ip(at, "neigh", "flush", "nud", "permanent") },
		"no route in V": func(l *lab, n *Network, at string, p hostnet.Port) {
			l.ip(n.vnets["u1"].at.path, "route", "del", p.Address.String())
		},
		"no route in T": func(l *lab, n *Network, at string, p hostnet.Port) {
			l.ip(n.tunnel.at.path, "route", "del", p.TunnelAddress.String())
		},
		"no rules in V": func(l *lab, n *Network, at string, p hostnet.Port) {
			nft(l.t, n.vnets["u1"].at.path, "flush", "ruleset")
		},
		"no rules in T": func(l *lab, n *Network, at string, p hostnet.Port) { nft(l.t, n.tunnel.at.path, "flush", "ruleset") },
		"no V":          func(l *lab, n *Network, at string, p hostnet.Port) { drop(l.t, n.names.vnet("u1")) },
		"no T":          func(l *lab, n *Network, at string, p hostnet.Port) { drop(l.t, n.names.tunnel()) },
		"no N":          func(l *lab, n *Network, at string, p hostnet.Port) { drop(l.t, n.names.nat("u1-egress")) },
		"no M":          func(l *lab, n *Network, at string, p hostnet.Port) { drop(l.t, filepath.Base(at)) },
		"no policy rule": func(l *lab, n *Network, at string, p hostnet.Port) {
			l.ip(n.vnets["u1"].at.path, "rule", "del", "pref", "40000")
		},
		"no host's table": func(l *lab, n *Network, at string, p hostnet.Port) { nft(l.t, l.host, "flush", "ruleset") },
		"no NAT veth": func(l *lab, n *Network, at string, p hostnet.Port) {
			l.ip(l.host, "link", "del", n.names.natHostLink("u1-egress"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			serveIn(t, l.world, labWorldAddr+":80", "world")
			serveIn(t, l.host, "127.0.0.1:5432", "orders")
			vn := withEndpoint(corp("u1"), "orders-db", "10.20.1.4", 5432, "127.0.0.1:5432")
			m := member(vn, 1, 1)
			cfg := hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{m}}
			n := l.up()
			at := portOf(t, l.set(n, cfg), m)
			check := func(n *Network, at string) {
				t.Helper()
				wantGreeting(t, at, labWorldAddr+":80", "world "+labHostAddr)
				wantGreeting(t, at, "10.20.1.4:5432", "orders 127.0.0.1")
				wantSilence(t, at, "10.20.1.4:5433")
				if _, err := dialIn(t, at, n.TunnelEndpoint().String(), time.Second); err != nil {
					t.Errorf("the relay is out of reach: %v", err)
				}
			}
			check(n, at)
			var before uint64
			if name != "no M" {
				before = inode(t, at)
			}
			if name == "no V" || name == "no T" || name == "no N" || name == "no M" {
				if err := n.Close(); err != nil {
					t.Fatal(err)
				}
				harm(l, n, at, m)
				n = l.up()
			} else {
				harm(l, n, at, m)
				if err := n.Close(); err != nil {
					t.Fatal(err)
				}
				n = l.up()
			}
			at = portOf(t, l.set(n, cfg), m)
			if before != 0 && inode(t, at) != before {
				t.Error("the member's namespace was made anew: a process in it would be cut off")
			}
			check(n, at)
		})
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func drop(t testing.TB, name string) {
	t.Helper()
	if err := dropName(name); err != nil {
		t.Fatal(err)
	}
}

// TestRunningProcessRepairs: what is taken away under a running process comes back at
// the next look, and names that were dropped are given again to the same namespaces.
func TestRunningProcessRepairs(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.world, labWorldAddr+":80", "world")
	vn := corp("u1")
	m := member(vn, 1, 1)
	cfg := hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{m}}
	n := l.up(func(o *Options) { o.VerifyEvery = -1 })
	at := portOf(t, l.set(n, cfg), m)
	old := mustDial(t, at, labWorldAddr+":80")
	for _, name := range []string{n.names.vnet("u1"), n.names.tunnel(), n.names.nat("u1-egress"), filepath.Base(at)} {
		drop(t, name)
	}
	nft(t, l.host, "flush", "ruleset")
	l.set(n, cfg)
	echo(t, old, "still the same namespaces")
	l.ip(at, "route", "flush", "default")
	l.ip(n.vnets["u1"].at.path, "route", "del", m.Address.String())
	l.set(n, cfg)
	wantGreeting(t, at, labWorldAddr+":80", "world "+labHostAddr)
}

// TestKilledWhileMaking cancels Set after ever longer times: whatever was made by
// then, the next process completes it, and CleanUp leaves nothing.
func TestKilledWhileMaking(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.world, labWorldAddr+":80", "world")
	vn := corp("u1")
	var cfg hostnet.Config
	cfg.VNets = []core.GoalVNet{vn}
	for i := range 6 {
		cfg.Ports = append(cfg.Ports, member(vn, i+1, i+1))
		n, err := New(l.options())
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Up(l.ctx()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i*2)*time.Millisecond)
		n.Set(ctx, cfg)
		cancel()
		n.Close()
	}
	s := l.set(l.up(), cfg)
	for _, p := range cfg.Ports {
		wantGreeting(t, portOf(t, s, p), labWorldAddr+":80", "world "+labHostAddr)
	}
}

func TestRemovedPortsGo(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	vn := open(corp("u1"))
	a, b := member(vn, 1, 1), member(vn, 2, 2)
	n := l.up()
	l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{a, b}})
	// The lease and the tunnel address go to the next generation at once.
	next := a
	next.Generation++
	s := l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{next, b}})
	serveIn(t, portOf(t, s, next), "0.0.0.0:9000", "next")
	wantGreeting(t, portOf(t, s, b), a.Address.String()+":9000", "next "+b.Address.String())
	n.reaper.wait()
	for _, item := range inventory(t, n) {
		if strings.Contains(item.Why, a.Member+" generation 1") {
			t.Errorf("left over: %v", item)
		}
	}
	wantGreeting(t, portOf(t, s, b), a.Address.String()+":9000", "next "+b.Address.String())
}

// TestRemovedIsOutOfReachAtOnce: the slow part of a removal is not what cuts it off.
func TestRemovedIsOutOfReachAtOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	vn := withEndpoint(open(corp("u1")), "orders-db", "10.20.1.4", 5432, "127.0.0.1:5432")
	a, b := member(vn, 1, 1), member(vn, 2, 2)
	n := l.up()
	l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{a, b}})
	at, tunnel := n.vnets["u1"].at.path, n.tunnel.at.path
	rest := cloneVNet(vn)
	rest.Endpoints, rest.NATGateways, rest.Subnets[0].NATGateway = nil, nil, ""
	l.set(n, hostnet.Config{VNets: []core.GoalVNet{rest}, Ports: []hostnet.Port{b}})
	for what, list := range map[string]string{
		a.Address.String() + " ": l.ip(at, "route"), a.TunnelAddress.String() + " ": l.ip(tunnel, "route"),
		"10.20.1.4": l.ip(at, "addr"), "from 10.20.0.0/24": l.ip(at, "rule"), portLink(a.Key()): nft(t, at, "list", "ruleset"),
	} {
		if strings.Contains(list, what) {
			t.Errorf("%q is still in:\n%s", what, list)
		}
	}
}

// TestLeftoverWithAProcessInIt: the name of its namespace goes, the process stays, and
// its interfaces are taken from it.
func TestLeftoverWithAProcessInIt(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	vn := corp("u1")
	m := member(vn, 1, 1)
	n := l.up()
	at := portOf(t, l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{m}}), m)
	sleep := exec.Command("sleep", "60")
	in(t, at, sleep.Start)
	defer func() { sleep.Process.Kill(); sleep.Wait() }()
	n.Close()
	n = l.up()
	l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}})
	for _, path := range []string{n.vnets["u1"].at.path, n.tunnel.at.path} {
		if out := l.ip(path, "-br", "link"); strings.Contains(out, portDigest(m.Key())) {
			t.Errorf("the member's interface is still there:\n%s", out)
		}
	}
	if err := sleep.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the process was ended: %v", err)
	}
}

// TestLeftoversOfAnEarlierProcess: what nobody wants any more goes at the first Set.
func TestLeftoversOfAnEarlierProcess(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	vn, other := corp("u1"), corp("u2")
	a, b := member(vn, 1, 1), member(vn, 2, 2)
	n := l.up()
	l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn, other}, Ports: []hostnet.Port{a, b, member(other, 1, 3)}})
	n.Close()
	n = l.up()
	cfg := hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{a}}
	l.set(n, cfg)
	n.reaper.wait()
	fresh := newLab(t)
	m := fresh.up()
	fresh.set(m, cfg)
	plain := func(items []hostnet.Item, inst string) (out []string) {
		for _, i := range items {
			out = append(out, i.Type+" "+strings.ReplaceAll(strings.ReplaceAll(i.Name, inst, "I"), "169.254.0.1", "R")+" "+i.Why)
		}
		slices.Sort(out)
		return out
	}
	if d := cmp.Diff(plain(inventory(t, m), fresh.instance), plain(inventory(t, n), l.instance)); d != "" {
		t.Errorf("what is there differs from a fresh machine (-fresh +here):\n%s", d)
	}
}

func inventory(t testing.TB, n *Network) []hostnet.Item {
	t.Helper()
	items, err := n.Inventory(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return items
}

func TestCleanUpLeavesNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	look := func() string {
		own, err := namespaces(l.up0().names.prefix())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join([]string{
			strings.Join(own, " "), l.ip(l.host, "-br", "link"), l.ip(l.host, "route"), l.ip(l.host, "neigh", "show", "nud", "permanent"),
			nft(t, l.host, "list", "tables"), l.sysctl("ipv4/conf/up0/forwarding"),
		}, "\n")
	}
	before := look()
	vn := corp("u1")
	n := l.up()
	l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{member(vn, 1, 1)}})
	if look() == before {
		t.Fatal("the comparison sees nothing of what was made")
	}
	if items := inventory(t, n); len(items) < 12 {
		t.Errorf("the inventory lists %d items only: %v", len(items), items)
	}
	n.Close()
	for range 2 { // without Up, and again when there is nothing
		if err := l.up0().CleanUp(l.ctx()); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(before, look()); d != "" {
			t.Errorf("CleanUp left (-before +after):\n%s", d)
		}
	}
	if items := inventory(t, l.up0()); len(items) != 0 {
		t.Errorf("the inventory still lists %v", items)
	}
}

// up0 is a Network without Up.
func (l *lab) up0() *Network {
	l.t.Helper()
	n, err := New(l.options())
	if err != nil {
		l.t.Fatal(err)
	}
	return n
}

func TestTwentyPortsAtOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.world, labWorldAddr+":80", "world")
	vn := corp("u1")
	cfg := hostnet.Config{VNets: []core.GoalVNet{vn}}
	for i := range 20 {
		cfg.Ports = append(cfg.Ports, member(vn, i+1, i+1))
	}
	n := l.up()
	began := time.Now()
	s := l.set(n, cfg)
	all := time.Since(began)
	t.Logf("20 ports in %s", all)
	for _, p := range cfg.Ports {
		wantGreeting(t, portOf(t, s, p), labWorldAddr+":80", "world "+labHostAddr)
	}
	began = time.Now()
	l.set(n, cfg)
	if took := time.Since(began); took > 500*time.Millisecond && took > all/2 { // of a machine that is as busy
		t.Errorf("a Set that changes nothing took %s, and one that made everything %s", took, all)
	}
}

func TestTroubleOfOneObject(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	good, bad := corp("u1"), corp("u2")
	bad.Name, bad.NATGateways[0].PublicAddresses = "other", []string{"nonsense"}
	a, lost := member(good, 1, 1), member(corp("nowhere"), 1, 2)
	twin := a
	twin.Member = "m-twin"
	twin.TunnelAddress = netip.MustParseAddr("169.254.0.99")
	n := l.up()
	s, err := n.Set(l.ctx(), hostnet.Config{VNets: []core.GoalVNet{good, bad}, Ports: []hostnet.Port{a, lost, twin}})
	if err != nil {
		t.Fatal(err)
	}
	portOf(t, s, a)
	var about []string
	for _, p := range s.Problems {
		about = append(about, p.Object)
	}
	slices.Sort(about)
	if d := cmp.Diff([]string{"NATGateway/egress", "member m-nowhere-1", "member m-twin"}, about); d != "" || len(s.Ports) != 1 {
		t.Errorf("problems of (-want +got):\n%s\n%v", d, s)
	}
}

// TestNoGoroutineStays: Close ends everything of this process.
func TestNoGoroutineStays(t *testing.T) {
	l := newLab(t)
	serveIn(t, l.host, "127.0.0.1:5432", "orders")
	vn := withEndpoint(corp("u1"), "orders-db", "10.20.1.4", 5432, "127.0.0.1:5432")
	m := member(vn, 1, 1)
	before, files := runtime.NumGoroutine(), openFiles(t)
	n := l.up()
	at := portOf(t, l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{m}}), m)
	c := mustDial(t, at, "10.20.1.4:5432") // stays open
	defer c.Close()
	n.Close()
	// serveIn holds one goroutine for the connection that the endpoint made.
	deadline := time.Now().Add(3 * time.Second)
	for runtime.NumGoroutine() > before+1 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if now := runtime.NumGoroutine(); now > before+1 {
		buf := make([]byte, 1<<16)
		t.Errorf("%d goroutines before, %d after:\n%s", before, now, buf[:runtime.Stack(buf, true)])
	}
	if now := openFiles(t); len(now) > len(files)+2 { // the connection's two outer ends
		t.Errorf("%d files open before, %d after: %v", len(files), len(now), now)
	}
}

// openFiles lists the sockets and namespaces that this process has open.
func openFiles(t *testing.T) (out []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && (strings.HasPrefix(to, "socket:") || strings.Contains(to, "net")) {
			out = append(out, to)
		}
	}
	return out
}

// TestThreadsComeHome: after all that, every thread that can run other goroutines is
// in the process's own namespace.
func TestThreadsComeHome(t *testing.T) {
	l := newLab(t)
	home := inode(t, "/proc/self/ns/net")
	vn := corp("u1")
	n := l.up()
	l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{member(vn, 1, 1)}})
	var work sync.WaitGroup
	for range 50 {
		work.Go(func() {
			in(t, n.tunnel.at.path, func() error { return errors.Join(exec.Command("true").Run(), nil) })
			var st syscall.Stat_t
			if err := syscall.Stat(threadNS, &st); err != nil || st.Ino != home {
				t.Errorf("a goroutine runs in another namespace: %v", err)
			}
		})
	}
	work.Wait()
}

// TestRefusedRulesKeepTheOld: an NSG that can't be compiled leaves the network as it is.
func TestRefusedRulesKeepTheOld(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.host, "127.0.0.1:5432", "orders")
	vn := withEndpoint(corp("u1"), "orders-db", "10.20.1.4", 5432, "127.0.0.1:5432")
	m := member(vn, 1, 1)
	n := l.up()
	at := portOf(t, l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{m}}), m)
	broken := cloneVNet(vn)
	broken.NSGs[0].Rules[0].Access = "Perhaps"
	s, err := n.Set(l.ctx(), hostnet.Config{VNets: []core.GoalVNet{broken}, Ports: []hostnet.Port{m, member(vn, 2, 2)}})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Ports) != 1 || len(s.Problems) != 2 {
		t.Errorf("with rules that are refused: %v", s)
	}
	wantGreeting(t, portOf(t, s, m), "10.20.1.4:5432", "orders 127.0.0.1")
	wantSilence(t, at, "10.20.1.4:5433")
}

// TestInstancesNeverMeet: one instance's name may be how another's begins.
func TestInstancesNeverMeet(t *testing.T) {
	a, b := names{"ab"}, names{"ab1"}
	link := b.natHostLink("uid")
	if strings.HasPrefix(link, a.hostLinks()) || strings.HasPrefix(b.tunnel(), a.prefix()) {
		t.Errorf("%s or %s is taken for one of instance %s", link, b.tunnel(), a.instance)
	}
	if len(link) != 15 || len(names{"01234567"}.natHostLink("uid")) != 15 {
		t.Errorf("%s has not the length that our interfaces have", link)
	}
}
