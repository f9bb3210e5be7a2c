package linux

import (
	"net"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"golang.org/x/sys/unix"
)

// denyPort denies a TCP port inbound of the subnet data, before all other rules.
func denyPort(g core.GoalVNet, port string, revoke bool) core.GoalVNet {
	g = cloneVNet(g)
	data := &g.NSGs[1]
	data.Revoke = revoke
	data.Rules = append(data.Rules, core.SecurityRule{
		Name: "closed", Priority: 101, Direction: core.Inbound, Access: core.Deny, Protocol: core.ProtocolTCP, DestinationPorts: []string{port},
	})
	return g
}

// open2 lets everything pass but what denyPort adds.
func open2(g core.GoalVNet) core.GoalVNet {
	g = cloneVNet(g)
	for i := range g.NSGs {
		g.NSGs[i].Rules = nil
	}
	return g
}

// TestRevokeCutsWhatIsDenied: with revoke an update cuts flows that the new rules deny,
// to a private endpoint and to a member, and no other.
func TestRevokeCutsWhatIsDenied(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.host, "127.0.0.1:5432", "orders")
	serveIn(t, l.host, "127.0.0.1:5433", "other")
	g := withEndpoint(open2(corp("u1")), "orders", "10.20.1.4", 5432, "127.0.0.1:5432")
	g = withEndpoint(g, "other", "10.20.1.4", 5433, "127.0.0.1:5433")
	a, b := member(g, 1, 1), member(g, 2, 2)
	b.Subnet, b.Address = "data", nth(g.Subnets[1].Prefix, 9)
	n := l.up()
	cfg := hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{a, b}}
	s := l.set(n, cfg)
	from, to := portOf(t, s, a), portOf(t, s, b)
	accepted := acceptIn(t, to, b.Address.String()+":5432")
	flow := func(addr string) net.Conn {
		c := mustDial(t, from, addr)
		echo(t, c, "before")
		return c
	}
	endpoint, other := flow("10.20.1.4:5432"), flow("10.20.1.4:5433")
	neighbour, err := dialIn(t, from, b.Address.String()+":5432", 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	served := <-accepted
	carry(t, neighbour, served)

	cfg.VNets[0] = denyPort(g, "5432", false)
	l.set(n, cfg)
	echo(t, endpoint, "without revoke")
	carry(t, neighbour, served)
	cfg.VNets[0] = denyPort(g, "5432", true)
	l.set(n, cfg)
	echo(t, other, "not denied")
	wantCut(t, served, neighbour) // the other end must not open the way again
	wantCut(t, neighbour, served)
	if err := wantCut(t, endpoint, endpoint); err != nil && !isReset(err) {
		t.Errorf("the endpoint's connection: %v; want a reset", err)
	}
	wantSilence(t, from, "10.20.1.4:5432")
	echo(t, other, "still not denied")

	cfg.VNets[0] = g
	l.set(n, cfg)
	wantGreeting(t, from, "10.20.1.4:5432", "orders 127.0.0.1")
}

// acceptIn gives the first connection to an address in a namespace.
func acceptIn(t *testing.T, path, addr string) <-chan net.Conn {
	t.Helper()
	out := make(chan net.Conn, 1)
	in(t, path, func() error {
		l, err := net.Listen("tcp4", addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			defer close(out)
			if c, err := l.Accept(); err == nil {
				t.Cleanup(func() { c.Close() })
				out <- c
			}
		}()
		return nil
	})
	return out
}

// carry fails the test unless a line gets from one end to the other.
func carry(t *testing.T, from, to net.Conn) {
	t.Helper()
	if _, err := from.Write([]byte("across\n")); err != nil {
		t.Fatal(err)
	}
	if got, err := line(to); err != nil || got != "across" {
		t.Fatalf("%q arrived: %v", got, err)
	}
}

// wantCut fails the test if what one end writes arrives at the other. It gives the error
// of writing or reading.
func wantCut(t *testing.T, from, to net.Conn) error {
	t.Helper()
	_ = from.SetWriteDeadline(time.Now().Add(400 * time.Millisecond))
	_ = to.SetReadDeadline(time.Now().Add(400 * time.Millisecond))
	if _, err := from.Write([]byte("after\n")); err != nil {
		return err
	}
	n, err := to.Read(make([]byte, 8))
	if err == nil {
		t.Errorf("%d bytes came through a flow that is denied", n)
	}
	return err
}

func isReset(err error) bool {
	return contains(err.Error(), unix.ECONNRESET.Error()) || contains(err.Error(), unix.EPIPE.Error())
}
