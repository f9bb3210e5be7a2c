package linux

import (
	"errors"
	"syscall"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// TestOneMemberLeavesRoomAtAnEndpoint has one member take all that it can get.
func TestOneMemberLeavesRoomAtAnEndpoint(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.host, "127.0.0.1:5432", "orders")
	vn := withEndpoint(corp("u1"), "orders-db", "10.20.1.4", 5432, "127.0.0.1:5432")
	greedy, other := member(vn, 1, 1), member(vn, 2, 2)
	n := l.up(func(o *Options) { o.MaxEndpointConns, o.MaxEndpointConnsPerMember = 3, 2 })
	ready := l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{greedy, other}})
	at, beside := portOf(t, ready, greedy), portOf(t, ready, other)
	first, second := mustDial(t, at, "10.20.1.4:5432"), mustDial(t, at, "10.20.1.4:5432")
	if got, err := greeting(t, at, "10.20.1.4:5432"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("one connection too many for the member: %q, %v; want a reset", got, err)
	}
	third := mustDial(t, beside, "10.20.1.4:5432")
	echo(t, third, "there is room for the other")
	if got, err := greeting(t, beside, "10.20.1.4:5432"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("one connection too many for the endpoint: %q, %v; want a reset", got, err)
	}
	echo(t, first, "not disturbed")
	echo(t, second, "nor this one")
}
