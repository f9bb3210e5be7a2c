package linux

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"golang.org/x/sys/unix"
)

func TestMemberReachesWhatItsRulesAllow(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.host, "127.0.0.1:5432", "orders")
	serveIn(t, l.host, "127.0.0.1:5433", "secret")
	net := corp("u1")
	net = withEndpoint(net, "orders-db", "10.20.1.4", 5432, "127.0.0.1:5432")
	net = withEndpoint(net, "secret-db", "10.20.1.4", 5433, "127.0.0.1:5433")
	a, b := member(net, 1, 1), member(net, 2, 2)
	n := l.up()
	s := l.set(n, hostnet.Config{VNets: []core.GoalVNet{net}, Ports: []hostnet.Port{a, b}})
	at := portOf(t, s, a)

	wantGreeting(t, at, "10.20.1.4:5432", "orders 127.0.0.1")
	wantSilence(t, at, "10.20.1.4:5433") // gateways/deny-rest-of-vnet
	if _, err := dialIn(t, at, "10.20.1.9:5432", time.Second); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("an address that nobody has: %v; want no route to host", err)
	}
	serveIn(t, portOf(t, s, b), "10.20.0.5:5432", "neighbour")
	wantSilence(t, at, "10.20.0.5:5432") // inside the subnet, and denied all the same
	wantSilence(t, at, labHostAddr+":5432")
}

func TestChangedRulesActOnNewFlows(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.host, "127.0.0.1:5432", "orders")
	net := withEndpoint(corp("u1"), "orders-db", "10.20.1.4", 5432, "127.0.0.1:5432")
	m := member(net, 1, 1)
	n := l.up()
	cfg := hostnet.Config{VNets: []core.GoalVNet{net}, Ports: []hostnet.Port{m}}
	at := portOf(t, l.set(n, cfg), m)
	old, err := dialIn(t, at, "10.20.1.4:5432", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := line(old); err != nil {
		t.Fatal(err)
	}

	denied := cloneVNet(net)
	denied.NSGs[0].Rules[0].Access = core.Deny
	cfg.VNets = []core.GoalVNet{denied}
	l.set(n, cfg)
	wantSilence(t, at, "10.20.1.4:5432")
	echo(t, old, "still here")
}

func TestTwoNetworksWithTheSamePrefixes(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.host, "127.0.0.1:5432", "red")
	serveIn(t, l.host, "127.0.0.1:6432", "blue")
	red := withEndpoint(corp("red"), "db", "10.20.1.4", 5432, "127.0.0.1:5432")
	blue := withEndpoint(corp("blue"), "db", "10.20.1.4", 5432, "127.0.0.1:6432")
	a, b := member(red, 1, 1), member(blue, 1, 2)
	n := l.up()
	s := l.set(n, hostnet.Config{VNets: []core.GoalVNet{red, blue}, Ports: []hostnet.Port{a, b}})
	wantGreeting(t, portOf(t, s, a), "10.20.1.4:5432", "red 127.0.0.1")
	wantGreeting(t, portOf(t, s, b), "10.20.1.4:5432", "blue 127.0.0.1")
}

// TestPortsAreLookedAtAgainInTurns: one Set looks at so many ports again as make nobody wait,
// and asks for another one while some are due.
func TestPortsAreLookedAtAgainInTurns(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	vn := corp("u1")
	cfg := hostnet.Config{VNets: []core.GoalVNet{vn}}
	for i := range looksAtOnce + 6 {
		cfg.Ports = append(cfg.Ports, member(vn, i+1, i+1))
	}
	n := l.up(func(o *Options) { o.VerifyEvery = time.Hour })
	l.set(n, cfg)
	long := time.Now().Add(-2 * time.Hour)
	for _, p := range n.vnets["u1"].ports {
		p.checked = long
		l.ip(n.vnets["u1"].at.path, "route", "del", p.spec.Address.String())
	}
	due := func() (left int) {
		for _, p := range n.vnets["u1"].ports {
			if p.checked.Equal(long) {
				left++
			}
		}
		return left
	}
	for _, want := range []int{6, 0} {
		select {
		case <-n.Changes():
			t.Error("another Set is asked for, and nothing is due")
		default:
		}
		l.set(n, cfg)
		if left := due(); left != want {
			t.Fatalf("%d ports are due after a Set, not %d", left, want)
		}
		if want > 0 {
			select {
			case <-n.Changes():
			default:
				t.Error("no other Set is asked for while ports are due")
			}
		}
	}
	routes := l.ip(n.vnets["u1"].at.path, "route")
	for _, p := range cfg.Ports {
		if !strings.Contains(routes, p.Address.String()+" ") {
			t.Errorf("the route to %s was not repaired", p.Address)
		}
	}
}
