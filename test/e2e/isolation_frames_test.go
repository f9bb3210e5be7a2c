package e2e

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/nettest"
)

// forgery is frames that must not pass, and the same without what is forged, which must.
type forgery struct {
	what            string
	attack, control []nettest.Frame
}

func broadcast() net.HardwareAddr { return net.HardwareAddr{255, 255, 255, 255, 255, 255} }

// lookouts listen wherever a frame of the attacker's can come from its virtual network, or
// from the tunnels' namespace, the NAT gateways last. What those two answer to the attacker
// itself, such as that an address is unreachable, is not looked at.
func (f *field) lookouts(t *testing.T) []*sniffer {
	t.Helper()
	out := []*sniffer{
		sniff(t, "the neighbour's namespace", f.memberSpace(f.neighbour), false, ""),
		sniff(t, "the tunnels, outgoing", f.tunnelSpace(), true, ""),
		sniff(t, "the other network", f.vnetSpace(f.twin), false, ""),
		sniff(t, "the other network's member", f.memberSpace(f.twin), false, ""),
		sniff(t, "the host's links", "/proc/self/ns/net", false, "s"+f.Instance()+"-"),
	}
	for i, n := range f.spaces("n") {
		out = append(out, sniff(t, fmt.Sprintf("NAT gateway %d", i), n, false, ""))
	}
	return out
}

// tap is an interface that frames are put on.
type tap struct{ *nettest.Tap }

// tapOf opens an interface of the attacker's.
func (f *field) tapOf(t *testing.T, m core.Member, link string) *tap {
	t.Helper()
	space := f.memberSpace(m)
	next := nextHop(t, space, link)
	w := &tap{}
	err := nettest.In(space, func() (err error) {
		w.Tap, err = nettest.OpenTap(link, next)
		return err
	})
	if err != nil {
		t.Fatalf("%s in %s: %v", link, space, err)
	}
	t.Cleanup(w.Close)
	return w
}

// sendAll sends frames with a mark by which they are known, and gives it; TCP has it as its
// source port, too, so that answers are known as well.
func (w *tap) sendAll(t *testing.T, what string, number int, frames []nettest.Frame) (mark string, port uint16) {
	t.Helper()
	mark, port = fmt.Sprintf("%s%02s", markerText, strconv.FormatInt(int64(number), 36)), uint16(markerBase+number)
	for _, r := range frames {
		if r.Protocol == unix.IPPROTO_TCP {
			r.SourcePort = port
		}
		if !r.Plain {
			r.Text += mark
		}
		if err := w.Send(r); err != nil {
			t.Fatalf("send %s: %v", what, err)
		}
	}
	return mark, port
}

// framesOnEth sends what a member must not send from its lease's interface. The controls
// leave through the NAT gateway.
func (f *field) framesOnEth(t *testing.T) {
	w := f.tapOf(t, f.attacker, "eth0")
	lookouts := f.lookouts(t)
	nat := lookouts[len(lookouts)-1]
	forgeries := f.ethForgeries(t)
	var attacks, controls []string
	for i, g := range forgeries {
		mark, _ := w.sendAll(t, g.what, 2*i, g.attack)
		attacks = append(attacks, mark)
		if g.control == nil {
			g.control = []nettest.Frame{f.lawful()}
		}
		mark, _ = w.sendAll(t, g.what+" (control)", 2*i+1, g.control)
		controls = append(controls, mark)
	}
	for i, g := range forgeries {
		eventually(t, 60*time.Second, "the control of "+g.what+" leaves", func() bool { return nat.count(controls[i]) > 0 })
	}
	for i, g := range forgeries {
		for _, s := range lookouts {
			if n := s.count(attacks[i]); n > 0 {
				t.Errorf("%s: %d frames were seen in %s", g.what, n, s.where)
			}
		}
	}
}

// lawful is a datagram that the rules let out.
func (f *field) lawful() nettest.Frame {
	return nettest.Frame{Src: f.attacker.Address.String(), Dst: f.host()}
}

func (f *field) host() string {
	for _, a := range hostAddressList() {
		if !strings.HasPrefix(a, "127.") && !strings.HasPrefix(a, "10.20.") {
			return a
		}
	}
	return "192.0.2.1"
}

func hostAddressList() (out []string) {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
			out = append(out, n.IP.String())
		}
	}
	return out
}

func (f *field) ethForgeries(t *testing.T) []forgery {
	out := append(f.spoofed(t), f.misdirected(t)...)
	return append(out, f.misshapen()...)
}

// spoofed come from somebody else.
func (f *field) spoofed(t *testing.T) (out []forgery) {
	for what, src := range map[string]string{
		"from a free address": "10.20.0.77", "from the neighbour's address": f.neighbour.Address.String(), "from an endpoint's address": "10.20.1.4",
		"from the resolver's address": "10.20.0.2", "from an outside address": "192.0.2.9", "from loopback": "127.0.0.1",
		"from the host's address": f.host(), "from the tunnel's address": f.attacker.TunnelAddress.String(), "from no address": "0.0.0.0",
		"from the broadcast address": "255.255.255.255", "from a multicast address": "224.0.0.9",
	} {
		r := f.lawful()
		r.Src = src
		out = append(out, forgery{what: what, attack: []nettest.Frame{r}})
		whole := f.lawful()
		out = append(out, forgery{what: "in fragments, " + what, attack: fragments(r), control: fragments(whole)})
	}
	for what, mac := range map[string]net.HardwareAddr{
		"from a MAC of its own": {2, 0, 0, 0, 0, 9}, "from the neighbour's MAC": macOf(t, f.memberSpace(f.neighbour), "eth0"),
		"from the next hop's MAC": nextHop(t, f.memberSpace(f.attacker), "eth0"), "from the tunnel's MAC": macOf(t, f.memberSpace(f.attacker), "tun0"),
	} {
		r := f.lawful()
		r.From = mac
		out = append(out, forgery{what: what, attack: []nettest.Frame{r}})
	}
	return out
}

// fragments divides a datagram in two; the marker, which is as long as it must be, is in
// the second.
func fragments(r nettest.Frame) []nettest.Frame {
	first, second := r, r
	first.Fragment, second.Fragment, second.Bare = nettest.MoreFragments, 1, true
	first.Plain = true
	return []nettest.Frame{first, second}
}

// misdirected go where a member has nothing to look for.
func (f *field) misdirected(t *testing.T) (out []forgery) {
	for what, dst := range map[string]string{
		"to a metadata service": "169.254.169.254", "to the neighbour's tunnel address": f.neighbour.TunnelAddress.String(),
		"to the tunnel's far end": "169.254.0.1", "to loopback": "127.0.0.1", "to the neighbour": f.neighbour.Address.String(),
		"to the other network's endpoint": "10.20.1.7", "to the first address of the subnet": "10.20.0.0", "to the subnet's gateway": "10.20.0.1",
		"to this network": "0.0.0.0",
	} {
		r := f.lawful()
		r.Dst = dst
		out = append(out, forgery{what: what, attack: []nettest.Frame{r}})
	}
	for what, to := range map[string]struct {
		dst string
		mac net.HardwareAddr
	}{
		"to everyone": {"255.255.255.255", broadcast()}, "to everyone in the subnet": {"10.20.0.255", broadcast()},
		"to a multicast group": {"224.0.0.251", net.HardwareAddr{1, 0, 0x5e, 0, 0, 251}}, "to a routed group": {"239.1.1.1", net.HardwareAddr{1, 0, 0x5e, 1, 1, 1}},
		"to the host in a broadcast frame": {f.host(), broadcast()}, "to the host at the neighbour's MAC": {f.host(), macOf(t, f.memberSpace(f.neighbour), "eth0")},
	} {
		r := f.lawful()
		r.Dst, r.To = to.dst, to.mac
		out = append(out, forgery{what: what, attack: []nettest.Frame{r}})
	}
	return out
}

// misshapen are allowed by source and destination.
func (f *field) misshapen() []forgery {
	with := func(change func(*nettest.Frame)) []nettest.Frame {
		r := f.lawful()
		change(&r)
		return []nettest.Frame{r}
	}
	neighbour := f.neighbour.Address.As4()
	route := append([]byte{131, 7, 4}, neighbour[:]...)
	out := []forgery{
		{"with a source route", with(func(r *nettest.Frame) { r.Options = append(route, 0) }), with(func(r *nettest.Frame) { r.Options = []byte{1, 1, 1, 1, 1, 1, 1, 0} })},
		{"with a strict source route", with(func(r *nettest.Frame) { r.Options = append([]byte{137, 7, 4}, append(neighbour[:], 0)...) }), nil},
		{"whose time to live is over", with(func(r *nettest.Frame) { r.TTL = 1 }), nil},
		{"in a VLAN", with(func(r *nettest.Frame) { r.Tag = 7 }), nil},
		{"a later fragment alone", with(func(r *nettest.Frame) { r.Fragment, r.Bare = 1, true }), nil},
		{"TCP that belongs to no flow", with(func(r *nettest.Frame) { r.Protocol, r.Flags = unix.IPPROTO_TCP, 0x10 }), with(func(r *nettest.Frame) { r.Protocol = unix.IPPROTO_TCP })},
		{"TCP with all flags", with(func(r *nettest.Frame) { r.Protocol, r.Flags = unix.IPPROTO_TCP, 0x3f }), nil},
		{"IPv6", with(func(r *nettest.Frame) { r.Kind, r.Text = unix.ETH_P_IPV6, "`" }), nil},
	}
	for what, proto := range map[string]byte{"IP in IP": 4, "IPv6 in IP": 41, "GRE": 47, "ESP": 50, "AH": 51, "SCTP": 132, "IGMP": 2} {
		out = append(out, forgery{what: what, attack: with(func(r *nettest.Frame) { r.Protocol = proto })})
	}
	return out
}

func macOf(t *testing.T, space, link string) (mac net.HardwareAddr) {
	t.Helper()
	err := nettest.In(space, func() error {
		i, err := net.InterfaceByName(link)
		if err == nil {
			mac = i.HardwareAddr
		}
		return err
	})
	if err != nil {
		t.Fatalf("%s in %s: %v", link, space, err)
	}
	return mac
}

// framesOnTun sends what a member must not send into its tunnel. The controls are
// answered by the relay.
func (f *field) framesOnTun(t *testing.T) {
	w := f.tapOf(t, f.attacker, "tun0")
	lookouts := f.lookouts(t)
	home := sniff(t, "the attacker's own namespace", f.memberSpace(f.attacker), false, "")
	forgeries := f.tunForgeries()
	var marks []string
	var ports, controls []uint16
	for i, g := range forgeries {
		mark, port := w.sendAll(t, g.what, 2*i, g.attack)
		_, control := w.sendAll(t, g.what+" (control)", 2*i+1, []nettest.Frame{f.toRelay()})
		marks, ports, controls = append(marks, mark), append(ports, port), append(controls, control)
	}
	for i, g := range forgeries {
		eventually(t, 60*time.Second, "the relay answers the control of "+g.what, func() bool { return home.count(fmt.Sprint(controls[i])) > 0 })
	}
	for i, g := range forgeries {
		for _, s := range append(lookouts, home) {
			if n := s.count(fmt.Sprint(ports[i])); n > 0 {
				t.Errorf("%s: %d answers were seen in %s", g.what, n, s.where)
			}
			if n := s.count(marks[i]); n > 0 && s != home {
				t.Errorf("%s: %d frames were seen in %s", g.what, n, s.where)
			}
		}
	}
}

// toRelay is the first segment of a connection to the relay.
func (f *field) toRelay() nettest.Frame {
	return nettest.Frame{Src: f.attacker.TunnelAddress.String(), Dst: "169.254.0.1", Protocol: unix.IPPROTO_TCP, Port: 8483}
}

func (f *field) tunForgeries() (out []forgery) {
	add := func(what string, change func(*nettest.Frame)) {
		r := f.toRelay()
		change(&r)
		out = append(out, forgery{what: what, attack: []nettest.Frame{r}})
	}
	for what, src := range map[string]string{
		"from the neighbour's tunnel address": f.neighbour.TunnelAddress.String(), "from the lease": f.attacker.Address.String(),
		"from the neighbour's lease": f.neighbour.Address.String(), "from a free tunnel address": "169.254.77.77", "from the far end's address": "169.254.0.1",
		"from the host's address": f.host(), "from loopback": "127.0.0.1", "from an outside address": "192.0.2.9", "from no address": "0.0.0.0",
	} {
		add(what, func(r *nettest.Frame) { r.Src = src })
	}
	for what, dst := range map[string]string{
		"to the neighbour's tunnel address": f.neighbour.TunnelAddress.String(), "to the neighbour's lease": f.neighbour.Address.String(),
		"to a metadata service": "169.254.169.254", "to the host's address": f.host(), "to loopback": "127.0.0.1",
		"to an outside address": "192.0.2.9", "to a private endpoint": "10.20.1.4", "to an address past the far end": "169.254.0.2",
	} {
		add(what, func(r *nettest.Frame) { r.Dst = dst })
	}
	for _, port := range []uint16{22, 53, 80, 8482, 8484, uint16(portOf(f.HTTP)), uint16(f.echo)} {
		add(fmt.Sprintf("to the far end's port %d", port), func(r *nettest.Frame) { r.Port = port })
	}
	add("to everyone", func(r *nettest.Frame) { r.Dst, r.To = "169.254.255.255", broadcast() })
	add("to a multicast group", func(r *nettest.Frame) { r.Dst, r.To = "224.0.0.1", net.HardwareAddr{1, 0, 0x5e, 0, 0, 1} })
	add("to the relay in a broadcast frame", func(r *nettest.Frame) { r.To = broadcast() })
	add("to the relay over UDP", func(r *nettest.Frame) { r.Protocol = unix.IPPROTO_UDP })
	add("in a VLAN", func(r *nettest.Frame) { r.Tag = 7 })
	add("IPv6", func(r *nettest.Frame) { r.Kind, r.Text = unix.ETH_P_IPV6, "`" })
	neighbour := f.neighbour.TunnelAddress.As4()
	add("with a source route", func(r *nettest.Frame) { r.Options = append([]byte{131, 7, 4}, append(neighbour[:], 0)...) })
	return out
}
