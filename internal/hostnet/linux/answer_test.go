package linux

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

func TestResolverAnswersMembers(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	vn := corp("u1")
	m := member(vn, 1, 1)
	n := l.up()
	cfg := hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{m}}
	at := portOf(t, l.set(n, cfg), m)
	servers := n.Resolvers("u1", "gateways")
	want := []netip.AddrPort{netip.MustParseAddrPort("10.20.0.2:53"), netip.MustParseAddrPort("10.20.0.3:53")}
	if d := cmp.Diff(want, servers, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Error(d)
	}
	for _, network := range []string{"udp", "tcp"} {
		for _, s := range servers {
			if got, err := ask(t, at, network, s, "orders.corp.internal."); err != nil || got != "10.20.1.4" {
				t.Errorf("%s %s answered %q, %v", network, s, got, err)
			}
		}
	}
	vn = cloneVNet(vn)
	vn.Zones[0].Records[0].Address = netip.MustParseAddr("10.20.1.5")
	cfg.VNets = []core.GoalVNet{vn}
	l.set(n, cfg)
	if got, err := ask(t, at, "udp", servers[0], "orders.corp.internal."); err != nil || got != "10.20.1.5" {
		t.Errorf("after the change: %q, %v", got, err)
	}
}

func ask(t *testing.T, path, network string, server netip.AddrPort, name string) (string, error) {
	t.Helper()
	var c net.Conn
	in(t, path, func() (err error) {
		c, err = net.DialTimeout(network, server.String(), time.Second)
		return err
	})
	defer c.Close()
	client := dns.Client{Net: network, Timeout: 2 * time.Second}
	r, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(name, dns.TypeA), &dns.Conn{Conn: c})
	if err != nil || len(r.Answer) != 1 {
		return "", fmt.Errorf("no answer: %v, %v", r, err)
	}
	return r.Answer[0].(*dns.A).A.String(), nil
}

func TestEndpointResetsWhenItsTargetIsDown(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	vn := withEndpoint(corp("u1"), "orders-db", "10.20.1.4", 5432, "127.0.0.1:5432")
	m := member(vn, 1, 1)
	n := l.up()
	at := portOf(t, l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{m}}), m)
	began := time.Now()
	_, err := greeting(t, at, "10.20.1.4:5432")
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a target that is down: %v; want a reset", err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took %s to say so", took)
	}
	serveIn(t, l.host, "127.0.0.1:5432", "orders")
	wantGreeting(t, at, "10.20.1.4:5432", "orders 127.0.0.1")
}

func TestEndpointBoundsItsConnections(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.host, "127.0.0.1:5432", "orders")
	vn := withEndpoint(corp("u1"), "orders-db", "10.20.1.4", 5432, "127.0.0.1:5432")
	m := member(vn, 1, 1)
	n := l.up(func(o *Options) { o.MaxEndpointConns = 1 })
	at := portOf(t, l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{m}}), m)
	first := mustDial(t, at, "10.20.1.4:5432")
	if got, err := greeting(t, at, "10.20.1.4:5432"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("one connection too many: %q, %v; want a reset", got, err)
	}
	echo(t, first, "not disturbed")
	first.Close()
	for range 50 {
		if got, err := greeting(t, at, "10.20.1.4:5432"); err == nil && got == "orders 127.0.0.1" {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("the place of a connection that ended was not given back")
}
