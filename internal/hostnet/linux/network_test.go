package linux

import (
	"errors"
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
