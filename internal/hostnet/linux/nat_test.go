package linux

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

func TestNATLeavesAsTheHost(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.world, labWorldAddr+":80", "world")
	serveIn(t, l.host, "0.0.0.0:22", "ssh")
	net := corp("u1")
	m := member(net, 1, 1)
	n := l.up()
	cfg := hostnet.Config{VNets: []core.GoalVNet{net}, Ports: []hostnet.Port{m}}
	s := l.set(n, cfg)
	at := portOf(t, s, m)
	wantGreeting(t, at, labWorldAddr+":80", "world "+labHostAddr)

	transit := n.vnets["u1"].nats["u1-egress"].transit
	wantSilence(t, at, labHostAddr+":22")      // the host by its own address
	wantSilence(t, at, transit.String()+":22") // the NAT gateway itself
	l.ip(l.world, "route", "add", "100.64.0.0/10", "via", labHostAddr)
	l.ip(l.world, "route", "add", "10.20.0.0/16", "via", labHostAddr)
	serveIn(t, at, "0.0.0.0:9000", "member")
	wantRefusal(t, l.world, transit.String()+":9000")
	wantRefusal(t, l.world, m.Address.String()+":9000")
	if counter(t, l.host, "unsolicited") == 0 {
		t.Error("the host's own rules let an unsolicited packet through to the NAT gateway")
	}

	if was, now := "0", l.sysctl("ipv4/conf/up0/forwarding"); now == was {
		t.Errorf("forwarding on the uplink is %s: the reply would have been lost", now)
	}
	l.set(n, hostnet.Config{})
	n.reaper.wait()
	if now := l.sysctl("ipv4/conf/up0/forwarding"); now != "0" {
		t.Errorf("without a NAT gateway, forwarding on the uplink is still %s", now)
	}
}

// TestHostDoesNotBecomeARouter: forwarding that was turned on for the NAT gateway
// carries nothing of others.
func TestHostDoesNotBecomeARouter(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	other := l.space("o")
	l.ip(l.host, "link", "add", "lan0", "type", "veth", "peer", "name", "lan0", "netns", "sluicetest-"+l.instance+"-o")
	l.ip(l.host, "addr", "add", "192.168.7.1/24", "dev", "lan0")
	l.ip(l.host, "link", "set", "lan0", "up")
	l.ip(other, "addr", "add", "192.168.7.2/24", "dev", "lan0")
	l.ip(other, "link", "set", "lan0", "up")
	l.ip(other, "route", "add", "default", "via", "192.168.7.1")
	l.ip(l.world, "route", "add", "192.168.7.0/24", "via", labHostAddr)
	in(t, l.host, func() error { // lan0 forwards already, for somebody else
		return writeAll([]sysctl{{key: forwardingKey("lan0"), value: "1"}})
	})
	serveIn(t, other, "192.168.7.2:80", "lan")
	net := corp("u1")
	l.set(l.up(), hostnet.Config{VNets: []core.GoalVNet{net}, Ports: []hostnet.Port{member(net, 1, 1)}})
	wantSilence(t, l.world, "192.168.7.2:80")
}

func TestNATLeavesAsItsAddresses(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.world, labWorldAddr+":80", "world")
	l.ip(l.world, "route", "add", "203.0.113.0/24", "via", labHostAddr)
	net := corp("u1")
	net.NATGateways[0].PublicAddresses = []string{"203.0.113.8/30"}
	m := member(net, 1, 1)
	n := l.up()
	s := l.set(n, hostnet.Config{VNets: []core.GoalVNet{net}, Ports: []hostnet.Port{m}})
	at := portOf(t, s, m)
	got, err := greeting(t, at, labWorldAddr+":80")
	if err != nil {
		t.Fatal(err)
	}
	from, err := netip.ParseAddr(strings.TrimPrefix(got, "world "))
	if err != nil || !netip.MustParsePrefix("203.0.113.8/30").Contains(from) {
		t.Errorf("the world saw %q; want an address of 203.0.113.8/30", got)
	}
	serveIn(t, at, "0.0.0.0:9000", "member")
	wantRefusal(t, l.world, "203.0.113.8:9000")
}

// TestNATChangesItsAddresses: from the host's to its own, to others, and back.
func TestNATChangesItsAddresses(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.world, labWorldAddr+":80", "world")
	l.ip(l.world, "route", "add", "203.0.113.0/24", "via", labHostAddr)
	net := corp("u1")
	m := member(net, 1, 1)
	n := l.up()
	for _, public := range []string{"host", "203.0.113.8", "203.0.113.9", "host"} {
		net.NATGateways[0].PublicAddresses = []string{public}
		at := portOf(t, l.set(n, hostnet.Config{VNets: []core.GoalVNet{net}, Ports: []hostnet.Port{m}}), m)
		want := public
		if public == "host" {
			want = labHostAddr
		}
		wantGreeting(t, at, labWorldAddr+":80", "world "+want)
	}
}

func TestNATTimersAreItsOwn(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	net := corp("u1")
	net.NATGateways[0].IdleTimeout = core.Duration(7 * time.Minute)
	n := l.up()
	l.set(n, hostnet.Config{VNets: []core.GoalVNet{net}})
	want := map[string]string{"tcp_timeout_established": "420", "tcp_timeout_time_wait": "65", "tcp_timeout_close": "16", "tcp_loose": "0"}
	in(t, n.vnets["u1"].nats["u1-egress"].at.path, func() error {
		for key, value := range want {
			if got, err := readSysctl("netfilter/nf_conntrack_" + key); err != nil || got != value {
				t.Errorf("%s is %q, %v; want %s", key, got, err, value)
			}
		}
		return nil
	})
}

// wantRefusal fails the test if a connection comes about, however it fails.
func wantRefusal(t *testing.T, path, addr string) {
	t.Helper()
	if c, err := dialIn(t, path, addr, 400*time.Millisecond); err == nil {
		t.Errorf("%s was reached from %s, unasked", addr, c.LocalAddr())
	}
}

func (l *lab) sysctl(key string) (value string) {
	l.t.Helper()
	in(l.t, l.host, func() (err error) {
		value, err = readSysctl(key)
		return err
	})
	return value
}

func TestTransitAvoidsTheHostsNetworks(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.up()
	first, err := n.hostSide.pickTransit("x", nil)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := n.hostSide.pickTransit("x", nil); again != first {
		t.Errorf("the same gateway got %s and %s", first, again)
	}
	l.ip(l.host, "route", "add", netip.PrefixFrom(first, 16).Masked().String(), "via", labWorldAddr)
	second, err := n.hostSide.pickTransit("x", nil)
	if err != nil {
		t.Fatal(err)
	}
	if netip.PrefixFrom(first, 16).Masked().Contains(second) {
		t.Errorf("%s lies in a network that the host has a route to", second)
	}
	l.ip(l.host, "route", "add", transitSpace.String(), "via", labWorldAddr)
	if a, err := n.hostSide.pickTransit("x", nil); err == nil {
		t.Errorf("got %s although no address is free", a)
	}
}

func TestSysctlMemoryOutlivesACrash(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	net := corp("u1")
	n := l.up()
	l.set(n, hostnet.Config{VNets: []core.GoalVNet{net}})
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(n.mem.file); err != nil {
		t.Fatalf("what was changed is not remembered: %v", err)
	}
	later, err := New(l.options())
	if err != nil {
		t.Fatal(err)
	}
	if err := later.CleanUp(l.ctx()); err != nil {
		t.Fatal(err)
	}
	if now := l.sysctl("ipv4/conf/up0/forwarding"); now != "0" {
		t.Errorf("after CleanUp, forwarding on the uplink is %s", now)
	}
	if _, err := os.Stat(n.mem.file); err == nil {
		t.Error("CleanUp left its memory behind")
	}
}

// TestNATGatewaysNeverShareAnInterface: the names on the host have 15 characters, so two
// UIDs may give one. The second is refused, and the first goes on.
func TestNATGatewaysNeverShareAnInterface(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.up()
	one, other := sameName(n.names)
	g := corp("u1")
	g.NATGateways[0].UID = one
	g.Subnets = append(g.Subnets, core.Subnet{Name: "more", Prefix: netip.MustParsePrefix("10.20.2.0/24"), NATGateway: "second"})
	g.NATGateways = append(g.NATGateways, core.GoalNATGateway{UID: other, NATGateway: core.NATGateway{Name: "second", VNet: "corp", PublicAddresses: []string{"host"}}})
	m := member(g, 1, 1)
	serveIn(t, l.world, labWorldAddr+":80", "world")
	s, err := n.Set(l.ctx(), hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{m}})
	if err != nil || len(s.Problems) != 1 || s.Problems[0].Object != "NATGateway/second" || !contains(s.Problems[0].Err.Error(), "would have the name of that of NATGateway/egress") {
		t.Fatalf("%v, %+v", err, s.Problems)
	}
	wantGreeting(t, portOf(t, s, m), labWorldAddr+":80", "world "+labHostAddr)
}

// sameName finds two UIDs whose NAT gateways would have one interface.
func sameName(n names) (one, other string) {
	seen := map[string]string{}
	for i := 0; ; i++ {
		uid := fmt.Sprint("uid-", i)
		if had := seen[n.natHostLink(uid)]; had != "" {
			return had, uid
		}
		seen[n.natHostLink(uid)] = uid
	}
}
