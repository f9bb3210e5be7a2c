package linux

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/nettest"
)

// stage is a network that exists, joined by an uplink with two members.
type stage struct {
	*lab
	n                *Network
	lan              string // the network's namespace, with lan0
	attacker, victim hostnet.Port
	from, beside     string // their namespaces
	v                string // that of the virtual network
	mac              net.HardwareAddr
	link             string // the uplink's interface in it
}

const uplinkOwn = "192.168.10.129"

// onStages runs a test for an uplink on a bridge and for one that is a NIC.
func onStages(t *testing.T, test func(*testing.T, *stage)) {
	t.Parallel()
	for name, on := range map[string]func(*core.Uplink){"a NIC": onDevice, "a bridge": onBridge} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			s := &stage{lab: l, lan: newLAN(l)}
			if name == "a bridge" {
				hostBridge(l)
			}
			g := plant("u1", onLAN(on))
			s.attacker, s.victim = plantMember(g, 1), plantMember(g, 2)
			s.n = l.up()
			status := l.set(s.n, hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{s.attacker, s.victim}})
			s.from, s.beside = portOf(t, status, s.attacker), portOf(t, status, s.victim)
			s.v, s.link = filepath.Join(netnsDir, s.n.names.vnet("u1")), s.n.names.uplinkLink("u1", "plant")
			link, err := s.n.vnets["u1"].at.nl.LinkByName(s.link)
			if err != nil {
				t.Fatal(err)
			}
			s.mac = link.Attrs().HardwareAddr
			test(t, s)
		})
	}
}

// tap opens an interface for frames made by hand, with the MAC that they go to by default.
func (s *stage) tap(space, link string, next net.HardwareAddr) *nettest.Tap {
	s.t.Helper()
	var w *nettest.Tap
	in(s.t, space, func() (err error) { w, err = nettest.OpenTap(link, next); return err })
	s.t.Cleanup(w.Close)
	return w
}

// hop is the MAC that a member's packets go to.
func (s *stage) hop(space string) net.HardwareAddr {
	s.t.Helper()
	f := strings.Fields(s.ip(space, "neigh", "show", "dev", ethName))
	for i, w := range f {
		if w == "lladdr" {
			mac, err := net.ParseMAC(f[i+1])
			if err != nil {
				s.t.Fatal(err)
			}
			return mac
		}
	}
	s.t.Fatalf("%s has no next hop: %v", space, f)
	return nil
}

// says holds everything that came from the uplink's MAC against what it may say: ARP for
// the leases and its own address, and IPv4 that the members sent to one machine.
func (s *stage) says(frames [][]byte, mayIP bool) {
	s.t.Helper()
	mine := map[netip.Addr]bool{s.attacker.Address: true, s.victim.Address: true}
	for _, f := range frames {
		if len(f) < 34 || !bytes.Equal(f[6:12], s.mac) {
			continue
		}
		kind, at := binary.BigEndian.Uint16(f[12:]), f[14:]
		switch {
		case kind == unix.ETH_P_ARP:
			sender := netip.AddrFrom4([4]byte(at[14:18]))
			if !bytes.Equal(at[8:14], s.mac) || !mine[sender] && sender.String() != uplinkOwn {
				s.t.Errorf("the uplink says that %s is at %s", sender, net.HardwareAddr(at[8:14]))
			}
		case kind == unix.ETH_P_IP && mayIP && mine[netip.AddrFrom4([4]byte(at[12:16]))] && f[0]&1 == 0:
		default:
			s.t.Errorf("the uplink says % x", f[:min(len(f), 48)])
		}
	}
}

// TestAMemberAttacksItsUplinksNetwork with frames of any kind, which takes more than a
// member's privileges: none of them, and nothing that they caused, is seen anywhere.
func TestAMemberAttacksItsUplinksNetwork(t *testing.T) {
	onStages(t, func(t *testing.T, s *stage) {
		lookouts := []*nettest.Lookout{
			nettest.Watch(t, "the network", s.lan, "lan0"), nettest.Watch(t, "the other member", s.beside, ethName), nettest.Watch(t, "the world", s.world, "up0"),
		}
		if s.tries(s.host, "link", "show", "hbr0") {
			lookouts = append(lookouts, nettest.Watch(t, "the host", s.host, "hbr0"))
		}
		wantGreeting(t, s.from, lanServer+":80", "lan "+s.attacker.Address.String())
		wantGreeting(t, s.beside, lanServer+":80", "lan "+s.victim.Address.String())
		knows := s.neighbours(s.lan)
		w := s.tap(s.from, ethName, s.hop(s.from))
		attacks := s.attacks(w)
		mark := func(i int, kind string) string { return fmt.Sprintf("<%s %03d>", kind, i) }
		names := sortedKeys(attacks)
		for i, name := range names {
			f := attacks[name]
			f.Text += mark(i, "attack")
			if err := w.Send(f); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			control := s.lawful()
			control.Text += mark(i, "control")
			if err := w.Send(control); err != nil {
				t.Fatal(err)
			}
		}
		for i, name := range names {
			soon(t, "the control of "+name+" arrives", func() bool { return lookouts[0].Saw(mark(i, "control")) > 0 })
			for _, l := range lookouts {
				if l.Saw(mark(i, "attack")) > 0 {
					t.Errorf("%s: %s saw it", name, l.Where)
				}
			}
		}
		s.says(lookouts[0].Frames(), true)
		if now := s.neighbours(s.lan); !maps.Equal(knows, now) {
			t.Errorf("the network knows %v; it knew %v", now, knows)
		}
	})
}

// lawful is what the rules let out to the network.
func (s *stage) lawful() nettest.Frame {
	return nettest.Frame{Src: s.attacker.Address.String(), Dst: lanServer, Port: 9}
}

// neighbours lists whom a namespace knows, and by which MAC.
func (s *stage) neighbours(space string) map[string]string {
	s.t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(s.ip(space, "-4", "neigh", "show")) {
		if f := strings.Fields(line); len(f) > 4 && f[3] == "lladdr" {
			out[f[0]] = f[4]
		}
	}
	return out
}

func soon(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func everyone() net.HardwareAddr { return net.HardwareAddr{255, 255, 255, 255, 255, 255} }

// attacks are one frame each.
func (s *stage) attacks(w *nettest.Tap) map[string]nettest.Frame {
	out := map[string]nettest.Frame{}
	with := func(change func(*nettest.Frame)) nettest.Frame {
		f := s.lawful()
		change(&f)
		return f
	}
	for name, src := range map[string]string{
		"the server's": lanServer, "the router's": lanRouter, "the office's": lanOffice, "the host's": lanHost, "the other member's": s.victim.Address.String(),
		"a free lease's": "192.168.10.150", "the uplink's own": uplinkOwn, "the resolver's": "192.168.10.130", "no": "0.0.0.0", "the world's": labWorldAddr,
	} {
		out["spoofs "+name+" address"] = with(func(f *nettest.Frame) { f.Src = src })
	}
	server := s.macIn(s.lan, "lan0")
	for name, mac := range map[string]net.HardwareAddr{"the server's": server, "the uplink's": s.mac, "the other member's": s.macIn(s.beside, ethName), "an invented": {2, 0, 0, 0, 0, 9}} {
		out["spoofs "+name+" MAC"] = with(func(f *nettest.Frame) { f.From = mac })
	}
	out["spoofs the server's MAC and address"] = with(func(f *nettest.Frame) { f.From, f.Src, f.Dst = server, lanServer, lanRouter })
	for name, claimed := range map[string]string{"the server": lanServer, "the router": lanRouter, "the host": lanHost, "the other member": s.victim.Address.String(), "itself": s.attacker.Address.String(), "a free address": "192.168.10.77"} {
		for kind, op := range map[string]byte{"asks as": 1, "answers for": 2} {
			for way, to := range map[string]net.HardwareAddr{"to everyone": everyone(), "to the server's MAC": server, "to the next hop": w.Next} {
				out[fmt.Sprintf("ARP: %s %s %s", kind, name, way)] = nettest.Frame{Kind: unix.ETH_P_ARP, To: to, Text: nettest.ARP(op, w.Own, claimed, to, lanServer)}
			}
		}
		out["ARP: announces "+name] = nettest.Frame{Kind: unix.ETH_P_ARP, To: everyone(), Text: nettest.ARP(2, w.Own, claimed, everyone(), claimed)}
	}
	maps.Copy(out, map[string]nettest.Frame{
		"DHCP: offers":            {Src: s.attacker.Address.String(), Dst: "255.255.255.255", To: everyone(), SourcePort: 67, Port: 68},
		"DHCP: offers to one":     {Src: s.attacker.Address.String(), Dst: lanServer, To: everyone(), SourcePort: 67, Port: 68},
		"DHCP: asks":              {Src: "0.0.0.0", Dst: "255.255.255.255", To: everyone(), SourcePort: 68, Port: 67},
		"IPv6: router":            {Kind: unix.ETH_P_IPV6, To: net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, Text: routerAdvertisement()},
		"IPv6: router, to one":    {Kind: unix.ETH_P_IPV6, To: server, Text: routerAdvertisement()},
		"IPv6: router, next hop":  {Kind: unix.ETH_P_IPV6, Text: routerAdvertisement()},
		"a spanning tree":         {Kind: 38, To: net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, Text: "\x42\x42\x03\x00\x00\x00\x00\x00"},
		"LLDP":                    {Kind: 0x88cc, To: net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0x0e}, Text: "\x02\x07"},
		"PPPoE":                   {Kind: 0x8863, To: everyone(), Text: "\x11\x09"},
		"EAPOL":                   {Kind: 0x888e, To: everyone(), Text: "\x01\x01"},
		"a datagram to everyone":  {Src: s.attacker.Address.String(), Dst: "255.255.255.255", To: everyone()},
		"to the network's all":    {Src: s.attacker.Address.String(), Dst: "192.168.10.255"},
		"to its all, as all":      {Src: s.attacker.Address.String(), Dst: "192.168.10.255", To: everyone()},
		"to a group":              {Src: s.attacker.Address.String(), Dst: "224.0.0.251", To: net.HardwareAddr{1, 0, 0x5e, 0, 0, 251}},
		"to a group, next hop":    {Src: s.attacker.Address.String(), Dst: "224.0.0.251"},
		"IGMP":                    {Src: s.attacker.Address.String(), Dst: "224.0.0.22", Protocol: 2, To: net.HardwareAddr{1, 0, 0x5e, 0, 0, 22}},
		"to the host's address":   {Src: s.attacker.Address.String(), Dst: lanHost},
		"to the host's other":     {Src: s.attacker.Address.String(), Dst: labHostAddr},
		"to the world":            {Src: s.attacker.Address.String(), Dst: labWorldAddr},
		"to a server's MAC":       {Src: s.attacker.Address.String(), Dst: lanServer, To: server},
		"to everyone's MAC":       {Src: s.attacker.Address.String(), Dst: lanServer, To: everyone()},
		"in VLAN 7":               {Src: s.attacker.Address.String(), Dst: lanServer, Tag: 7},
		"in VLAN 1, to everyone":  {Src: s.attacker.Address.String(), Dst: lanServer, Tag: 1, To: everyone()},
		"with a source route":     {Src: s.attacker.Address.String(), Dst: lanServer, Options: []byte{131, 7, 4, 192, 168, 10, 1, 0}},
		"from ARP's port, closed": {Src: s.attacker.Address.String(), Dst: lanServer, Protocol: unix.IPPROTO_TCP, Port: 81},
	})
	return out
}

func (s *stage) macIn(space, link string) (mac net.HardwareAddr) {
	s.t.Helper()
	in(s.t, space, func() error {
		i, err := net.InterfaceByName(link)
		if err == nil {
			mac = i.HardwareAddr
		}
		return err
	})
	return mac
}

// routerAdvertisement is IPv6 from fe80::66 to all nodes: a router for ten minutes.
func routerAdvertisement() string {
	p := make([]byte, 40+16+32)
	p[0], p[5], p[6], p[7] = 0x60, 16+32, 58, 255
	copy(p[8:], net.ParseIP("fe80::66"))
	copy(p[24:], net.ParseIP("ff02::1"))
	a := p[40:]
	a[0], a[4], a[6], a[7] = 134, 64, 2, 88
	copy(a[16:], []byte{3, 4, 64, 0xc0, 0, 0, 2, 88, 0, 0, 2, 88, 0, 0, 0, 0})
	copy(a[32:], net.ParseIP("fd00:66::"))
	return string(p)
}
