package linux

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/policy"
)

func TestTunnelReachesTheRelayAndNothingElse(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	vn := corp("u1")
	a, b := member(vn, 1, 1), member(vn, 2, 2)
	n := l.up()
	s := l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{a, b}})
	at, other := portOf(t, s, a), portOf(t, s, b)
	relay, err := n.TunnelListener()
	if err != nil {
		t.Fatal(err)
	}
	c, err := dialIn(t, at, n.TunnelEndpoint().String(), time.Second)
	if err != nil {
		t.Fatalf("the relay is out of reach: %v", err)
	}
	got, err := relay.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if from := got.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); from != a.TunnelAddress {
		t.Errorf("the relay sees %s; want %s", from, a.TunnelAddress)
	}
	if _, ok := got.(*net.TCPConn); !ok {
		t.Errorf("the relay's connection is a %T: it can't be spliced", got)
	}
	c.Close()

	serveIn(t, n.tunnel.at.path, "0.0.0.0:8484", "another port of T")
	serveIn(t, l.host, "0.0.0.0:22", "ssh")
	serveIn(t, other, "0.0.0.0:9000", "member")
	wantSilence(t, at, "169.254.0.1:8484")
	// The way to the host and to other members, if T gave one.
	l.ip(at, "route", "add", labHostAddr, "via", relayAddress.String(), "dev", tunName, "onlink")
	l.ip(at, "route", "add", b.TunnelAddress.String(), "via", relayAddress.String(), "dev", tunName, "onlink")
	wantSilence(t, at, labHostAddr+":22")
	wantSilence(t, at, b.TunnelAddress.String()+":9000")
}

// TestTunnelIsExemptUnlessARuleNamesIt: other rules don't matter to it; one that names it
// stops new connections, and with revoke those that are open.
func TestTunnelIsExemptUnlessARuleNamesIt(t *testing.T) {
	t.Parallel()
	if relayAddress.String() != policy.TunnelAddress {
		t.Fatalf("the evaluator takes %s for the tunnel's end, it is %s", policy.TunnelAddress, relayAddress)
	}
	l := newLab(t)
	vn := corp("u1")
	vn.NSGs[0].Rules = []core.SecurityRule{{Name: "all", Priority: 200, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolAny}}
	m, other := member(vn, 1, 1), member(vn, 2, 2)
	n := l.up()
	cfg := hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{m, other}}
	s := l.set(n, cfg)
	at := portOf(t, s, m)
	relay, err := n.TunnelListener()
	if err != nil {
		t.Fatal(err)
	}
	dial := func(path string) (member, host net.Conn) {
		t.Helper()
		member, err := dialIn(t, path, n.TunnelEndpoint().String(), 10*time.Second)
		if err != nil {
			t.Fatalf("the relay is out of reach: %v", err)
		}
		if host, err = relay.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { host.Close() })
		return member, host
	}
	inside, outside := dial(at)
	carry(t, inside, outside)

	named := cloneVNet(vn)
	named.NSGs[0].Rules = append(named.NSGs[0].Rules, core.SecurityRule{
		Name: "tunnel", Priority: 100, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolTCP,
		Source: []string{m.Address.String()}, Destination: []string{policy.TagPlatformTunnel},
	})
	cfg.VNets = []core.GoalVNet{named}
	l.set(n, cfg)
	carry(t, inside, outside)
	wantSilence(t, at, n.TunnelEndpoint().String())
	// The rule "all" does not name the tunnel, so the other member is exempt still.
	dial(portOf(t, s, other))

	cfg.VNets = []core.GoalVNet{cloneVNet(named)}
	cfg.VNets[0].NSGs[0].Revoke = true
	l.set(n, cfg)
	wantCut(t, inside, outside)

	cfg.VNets = []core.GoalVNet{vn}
	l.set(n, cfg)
	dial(at)
}

func TestTunnelDropsSpoofedSources(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	vn := corp("u1")
	a, b := member(vn, 1, 1), member(vn, 2, 2)
	n := l.up()
	s := l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{a, b}})
	at := portOf(t, s, a)
	before := counter(t, n.tunnel.at.path, "spoofed")
	l.ip(at, "addr", "add", b.TunnelAddress.String()+"/32", "dev", tunName)
	d := net.Dialer{Timeout: 300 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: b.TunnelAddress.AsSlice()}}
	in(t, at, func() error {
		if c, err := d.Dial("tcp4", n.TunnelEndpoint().String()); err == nil {
			t.Errorf("the relay took a connection from %s over the tunnel of %s", c.LocalAddr(), a.TunnelAddress)
			c.Close()
		}
		return nil
	})
	if after := counter(t, n.tunnel.at.path, "spoofed"); after == before {
		t.Error("no rule counted the spoofed packet: something else stopped it")
	}
}

// TestLeaseCannotBeSpoofed: a member sends from its lease only.
func TestLeaseCannotBeSpoofed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.host, "127.0.0.1:5432", "orders")
	vn := withEndpoint(corp("u1"), "orders-db", "10.20.1.4", 5432, "127.0.0.1:5432")
	m := member(vn, 1, 1)
	n := l.up()
	at := portOf(t, l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{m}}), m)
	l.ip(at, "addr", "add", "10.20.0.77/32", "dev", ethName)
	d := net.Dialer{Timeout: 300 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: net.ParseIP("10.20.0.77")}}
	in(t, at, func() error {
		if c, err := d.Dial("tcp4", "10.20.1.4:5432"); err == nil {
			t.Error("a packet from an address that is not leased was answered")
			c.Close()
		}
		return nil
	})
	if counter(t, n.vnets["u1"].at.path, "spoofed") == 0 {
		t.Error("no rule counted the spoofed packet")
	}
}

func TestMemberNamespaceIsClosed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	vn := corp("u1")
	m := member(vn, 1, 1)
	at := portOf(t, l.set(l.up(), hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{m}}), m)
	want := map[string]string{
		"mptcp/enabled": "0", "ipv4/ip_forward": "0",
		"ipv6/conf/eth0/disable_ipv6": "1", "ipv6/conf/tun0/disable_ipv6": "1", "ipv6/conf/lo/disable_ipv6": "1",
	}
	in(t, at, func() error {
		for key, value := range want {
			if got, err := readSysctl(key); err != nil || got != value {
				t.Errorf("%s is %q, %v; want %s", key, got, err, value)
			}
		}
		return nil
	})
	if out := l.ip(at, "neigh"); !contains(out, "10.20.0.1 dev eth0", "169.254.0.1 dev tun0", "PERMANENT") {
		t.Errorf("neighbours are not static:\n%s", out)
	}
	if out := l.ip(at, "route"); !contains(out, "default via 10.20.0.1 dev eth0", fmt.Sprintf("src %s", m.TunnelAddress)) {
		t.Errorf("routes:\n%s", out)
	}
}
