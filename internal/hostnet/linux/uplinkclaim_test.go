package linux

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/nettest"
)

func TestClaimIsDefendedOnce(t *testing.T) {
	t.Parallel()
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	begun := time.Now()
	var c claim
	for _, step := range []struct {
		after         time.Duration // the first
		defend, yield bool
	}{
		{0, true, false},
		{300 * time.Millisecond, false, false}, // it was under way when the address was defended
		{2 * time.Second, false, true},
		{9 * time.Second, false, true},
		{10 * time.Second, true, false}, // the last defence is long ago
		{10500 * time.Millisecond, false, false},
		{12 * time.Second, false, true},
		{time.Hour, true, false},
	} {
		var defend, yield bool
		c, defend, yield = c.heardAgain(mac, begun.Add(step.after))
		if defend != step.defend || yield != step.yield || !c.last.Equal(begun.Add(step.after)) || c.mac.String() != mac.String() {
			t.Errorf("after %s: defend %v, yield %v, %+v; want %v, %v", step.after, defend, yield, c, step.defend, step.yield)
		}
	}
}

// rival is a machine of the network that says to have an address.
func (l *lab) rival(lan string) (mac net.HardwareAddr, claim func(a netip.Addr)) {
	l.t.Helper()
	var w *nettest.Tap
	in(l.t, lan, func() (err error) { w, err = nettest.OpenTap("lan0", nil); return err })
	l.t.Cleanup(w.Close)
	return w.Own, func(a netip.Addr) {
		l.t.Helper()
		text := nettest.ARP(1, w.Own, a.String(), make(net.HardwareAddr, 6), a.String())
		if err := w.Send(nettest.Frame{Kind: unix.ETH_P_ARP, To: everyone(), Text: text}); err != nil {
			l.t.Fatal(err)
		}
	}
}

// announced counts the frames by which a MAC said that it has an address.
func announced(look *nettest.Lookout, mac net.HardwareAddr, a netip.Addr) (n int) {
	for _, f := range look.Frames() {
		if len(f) >= 42 && binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_ARP && bytes.Equal(f[6:12], mac) &&
			netip.AddrFrom4([4]byte(f[28:32])) == a && netip.AddrFrom4([4]byte(f[38:42])) == a {
			n++
		}
	}
	return n
}

func problemsOf(s hostnet.Status) string {
	var b strings.Builder
	for _, p := range s.Problems {
		b.WriteString(p.Object + ": " + p.Err.Error() + "\n")
	}
	return b.String()
}

// TestUplinkIsClaimed: another machine says that it has a member's address, or the uplink's
// own. Each is defended, is a problem that names both, and goes on.
func TestUplinkIsClaimed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := newLAN(l)
	hostBridge(l)
	g := plant("u1", onLAN(onBridge))
	m, other, n := plantMember(g, 1), plantMember(g, 2), l.up()
	cfg := hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{m}}
	at := portOf(t, l.set(n, cfg), m)
	mac := n.names.mac("uplink", "u1", "plant", "vnet")
	look := nettest.Watch(t, "the network", lan, "lan0")
	rival, claim := l.rival(lan)
	claim(other.Address) // nobody's here
	own := netip.MustParseAddr(uplinkOwn)
	for a, object := range map[netip.Addr]string{m.Address: "member " + m.Member, own: "VirtualNetwork/plant"} {
		claim(a)
		want := object + ": uplink plant (bridge hbr0): the machine " + rival.String() + " on its network says that it has the address " + a.String() + ", too"
		s := l.setUntil(n, want, func() hostnet.Config { return cfg }, func(s hostnet.Status) bool { return strings.Contains(problemsOf(s), want) })
		if s.Ports[m.Key()] == "" || strings.Contains(problemsOf(s), other.Address.String()) {
			t.Errorf("ports %v, problems %s", s.Ports, problemsOf(s))
		}
		l.await("the uplink's own announcement of "+a.String(), func() bool { return announced(look, mac, a) > 0 })
	}
	l.ip(lan, "neigh", "flush", "dev", "lan0")
	wantGreeting(t, at, lanServer+":80", "lan "+m.Address.String())
	if k := announced(look, mac, other.Address); k != 0 {
		t.Errorf("an address that is nobody's here was announced %d times", k)
	}
}

// TestUplinkByDHCPIsClaimed: a machine that does not give way has the address: it is declined,
// the member ends and says why; the uplink itself takes another.
func TestUplinkByDHCPIsClaimed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := newLAN(l)
	hostBridge(l)
	server := &scriptedDHCP{life: time.Hour, next: 140}
	serveDHCP(l, lan, server)
	g := plant("u1", onLAN(byDHCP))
	n := l.up()
	cfg, m, _ := l.running(n, g)
	rival, claim := l.rival(lan)
	own := func() netip.Addr { return n.vnets["u1"].uplinks["plant"].own }
	first := own()
	s := l.setUntil(n, "the uplink has another address", func() hostnet.Config { claim(first); return cfg }, func(hostnet.Status) bool {
		return own().IsValid() && own() != first
	})
	if s.Leased[m.Key()].Address != m.Address {
		t.Errorf("the member, whose address nobody claims, has %+v", s.Leased[m.Key()])
	}
	s = l.setUntil(n, "the member has lost its address", func() hostnet.Config { claim(m.Address); return cfg }, func(s hostnet.Status) bool {
		return s.Leased[m.Key()].Lost != ""
	})
	if why := s.Leased[m.Key()].Lost; !contains(why, "uplink plant (bridge hbr0), subnet gateways: its DHCP lease of "+m.Address.String()+" was declined: "+rival.String()+" uses that address, too") {
		t.Errorf("it is lost because %q", why)
	}
	l.await("the server is told of both addresses that others have", func() bool { return server.count("DECLINE false") >= 2 })
	if k := server.count("DECLINE false"); k != 2 {
		t.Errorf("the server was told of %d addresses that others have; want 2", k)
	}
}
