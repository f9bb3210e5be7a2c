package linux

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/nettest"
)

// TestAMachineOnTheUplinksNetworkAttacks sends frames of every kind from there to the
// uplink: members get none of them, and the only answer is that to ARP questions for the
// leases and for the uplink's own address. A member's flows go on meanwhile.
func TestAMachineOnTheUplinksNetworkAttacks(t *testing.T) {
	onStages(t, func(t *testing.T, s *stage) {
		held, err := dialIn(t, s.from, lanServer+":80", 3*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := line(held); err != nil {
			t.Fatal(err)
		}
		listenUDPIn(t, s.from, netip.AddrPortFrom(s.attacker.Address, 40001))
		serveIn(t, s.from, "0.0.0.0:40001", "member")
		network := nettest.Watch(t, "the network", s.lan, "lan0")
		members := []*nettest.Lookout{nettest.Watch(t, "a member", s.from, ethName), nettest.Watch(t, "the other member", s.beside, ethName)}
		w := s.tap(s.lan, "lan0", s.mac)
		before := s.tracked()
		attacks := s.lanAttacks(w)
		for _, name := range sortedKeys(attacks) {
			f := attacks[name]
			f.Text += "<attack " + name + ">"
			if err := w.Send(f); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		// What passes the same way, behind all of it.
		echo(t, held, "still there")
		wantAnswers := []string{s.attacker.Address.String(), s.victim.Address.String(), uplinkOwn}
		for _, a := range append(wantAnswers, "192.168.10.130", "192.168.10.150", "192.168.10.190", lanOffice, "127.0.0.1", labHostAddr) {
			if err := w.Send(nettest.Frame{Kind: unix.ETH_P_ARP, To: everyone(), Text: nettest.ARP(1, w.Own, lanServer, make(net.HardwareAddr, 6), a)}); err != nil {
				t.Fatal(err)
			}
		}
		soon(t, "ARP is answered for the leases and the uplink", func() bool { return len(s.answered(network)) == len(wantAnswers) })
		for _, l := range members {
			for name := range attacks {
				if l.Saw("<attack "+name+">") > 0 {
					t.Errorf("%s: %s saw it", name, l.Where)
				}
			}
		}
		for _, f := range network.Frames() {
			if len(f) < 34 || string(f[6:12]) != string(s.mac) {
				continue
			}
			ours := binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_IP && netip.AddrFrom4([4]byte(f[26:30])) == s.attacker.Address && f[23] == unix.IPPROTO_TCP && binary.BigEndian.Uint16(f[36:]) == 80
			if !ours && binary.BigEndian.Uint16(f[12:]) != unix.ETH_P_ARP {
				t.Errorf("the uplink answered % x", f[:min(len(f), 60)])
			}
		}
		s.says(network.Frames(), true)
		for _, a := range wantAnswers {
			if !s.answered(network)[netip.MustParseAddr(a)] {
				t.Errorf("nobody answered ARP for %s", a)
			}
		}
		if now := s.tracked(); now > before {
			t.Errorf("the network's namespace tracks %d flows; it were %d", now, before)
		}
		if six := s.ip(s.v, "-6", "addr", "show", "dev", s.link); strings.Contains(six, "inet6") {
			t.Errorf("the uplink took an IPv6 address: %s", six)
		}
	})
}

// answered lists the addresses that the uplink says are at its MAC.
func (s *stage) answered(l *nettest.Lookout) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, f := range l.Frames() {
		if len(f) >= 42 && binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_ARP && f[21] == 2 && string(f[6:12]) == string(s.mac) {
			out[netip.AddrFrom4([4]byte(f[28:32]))] = true
		}
	}
	return out
}

// tracked counts the flows in the virtual network's namespace.
func (s *stage) tracked() (n int) {
	s.t.Helper()
	in(s.t, s.v, func() error {
		list, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		n = len(list)
		return err
	})
	return n
}

// lanAttacks are one frame each, to the uplink's MAC where they don't say.
func (s *stage) lanAttacks(w *nettest.Tap) map[string]nettest.Frame {
	out := map[string]nettest.Frame{}
	lease, other := s.attacker.Address.String(), s.victim.Address.String()
	for at, dst := range map[string]string{
		"a member": lease, "the uplink": uplinkOwn, "the resolver": "192.168.10.130", "a free lease": "192.168.10.150", "the office": lanOffice,
		"the world": labWorldAddr, "the host": labHostAddr, "the host's loopback": "127.0.0.1", "a tunnel": s.attacker.TunnelAddress.String(), "the relay": "169.254.0.1",
	} {
		for kind, f := range map[string]nettest.Frame{
			"a datagram":    {SourcePort: 5000},
			"a question":    {Port: 53},
			"a connection":  {Protocol: unix.IPPROTO_TCP},
			"a web request": {Protocol: unix.IPPROTO_TCP, Port: 8483},
			"an ACK":        {Protocol: unix.IPPROTO_TCP, Flags: 0x10, SourcePort: 80},
			"a reset":       {Protocol: unix.IPPROTO_TCP, Flags: 0x04, SourcePort: 81},
			"a ping":        {Protocol: unix.IPPROTO_ICMP, Text: "\x08\x00\xf7\xff\x00\x00\x00\x00"},
			"a redirect":    {Protocol: unix.IPPROTO_ICMP, Text: "\x05\x01\x00\x00\xc0\xa8\x0a\x05"},
			"GRE":           {Protocol: 47}, "IP in IP": {Protocol: 4}, "SCTP": {Protocol: 132}, "IGMP": {Protocol: 2, Text: "\x11\x00\xee\xff\x00\x00\x00\x00"},
		} {
			f.Src, f.Dst = lanServer, dst
			out[kind+" for "+at] = f
		}
		for whose, src := range map[string]string{"a member": lease, "the other member": other, "the uplink": uplinkOwn, "the resolver": "192.168.10.130", "loopback": "127.0.0.1", "nobody": "0.0.0.0", "the world": labWorldAddr, "a tunnel": "169.254.7.7"} {
			out[fmt.Sprintf("spoofed as %s for %s", whose, at)] = nettest.Frame{Src: src, Dst: dst}
			out[fmt.Sprintf("a connection spoofed as %s for %s", whose, at)] = nettest.Frame{Src: src, Dst: dst, Protocol: unix.IPPROTO_TCP}
		}
	}
	maps.Copy(out, map[string]nettest.Frame{
		"to everyone":              {Src: lanServer, Dst: "255.255.255.255", To: everyone()},
		"to the network's all":     {Src: lanServer, Dst: "192.168.10.255", To: everyone()},
		"to a member, in everyone": {Src: lanServer, Dst: lease, To: everyone()},
		"to all machines":          {Src: lanServer, Dst: "224.0.0.1", To: net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}, Protocol: 2, Text: "\x11\x64\xee\x9b\x00\x00\x00\x00"},
		"a ping to all machines":   {Src: lanServer, Dst: "224.0.0.1", To: net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}, Protocol: unix.IPPROTO_ICMP, Text: "\x08\x00\xf7\xff\x00\x00\x00\x00"},
		"a ping to everyone":       {Src: lanServer, Dst: "192.168.10.255", To: everyone(), Protocol: unix.IPPROTO_ICMP, Text: "\x08\x00\xf7\xff\x00\x00\x00\x00"},
		"DHCP offers":              {Src: lanServer, Dst: "255.255.255.255", To: everyone(), SourcePort: 67, Port: 68},
		"an IPv6 router":           {Kind: unix.ETH_P_IPV6, To: net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, Text: routerAdvertisement()},
		"an IPv6 router, to it":    {Kind: unix.ETH_P_IPV6, Text: routerAdvertisement()},
		"in VLAN 7":                {Src: lanServer, Dst: lease, Tag: 7},
		"whose life is over":       {Src: lanServer, Dst: lease, TTL: 1},
		"with a source route":      {Src: lanServer, Dst: uplinkOwn, Options: append([]byte{131, 7, 4}, append(s.attacker.Address.AsSlice(), 0)...)},
		"a fragment":               {Src: lanServer, Dst: lease, Fragment: 1, Bare: true},
		"its own MAC":              {Src: lanServer, Dst: lease, From: s.mac},
		"ARP: has a member":        {Kind: unix.ETH_P_ARP, To: everyone(), Text: nettest.ARP(2, w.Own, lease, everyone(), lease)},
		"ARP: has the other":       {Kind: unix.ETH_P_ARP, Text: nettest.ARP(2, w.Own, other, s.mac, lease)},
		"ARP: has the uplink":      {Kind: unix.ETH_P_ARP, To: everyone(), Text: nettest.ARP(2, w.Own, uplinkOwn, everyone(), uplinkOwn)},
	})
	return out
}

// TestAFloodFromTheUplinksNetwork of new connections, questions and answers from many
// addresses and ports leaves no flow behind, and a member's own go on.
func TestAFloodFromTheUplinksNetwork(t *testing.T) {
	onStages(t, func(t *testing.T, s *stage) {
		held, err := dialIn(t, s.from, lanServer+":80", 3*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := line(held); err != nil {
			t.Fatal(err)
		}
		member := nettest.Watch(t, "the member", s.from, ethName)
		w, before := s.tap(s.lan, "lan0", s.mac), s.tracked()
		for i := range 4000 {
			src := netip.AddrFrom4([4]byte{10, 99, byte(i >> 8), byte(i)}).String() // what the uplink leads to
			for _, f := range []nettest.Frame{
				{Protocol: unix.IPPROTO_TCP}, {Protocol: unix.IPPROTO_TCP, Flags: 0x12}, {Protocol: unix.IPPROTO_UDP},
			} {
				f.Src, f.Dst, f.SourcePort, f.Text = src, s.attacker.Address.String(), uint16(1024+i), "<flood>"
				if err := w.Send(f); err != nil {
					t.Fatal(err)
				}
			}
		}
		echo(t, held, "after the flood")
		wantGreeting(t, s.from, lanServer+":80", "lan "+s.attacker.Address.String())
		if now := s.tracked(); now > before+1 {
			t.Errorf("the network's namespace tracks %d flows; it were %d", now, before)
		}
		if n := member.Saw("<flood>"); n > 0 {
			t.Errorf("the member got %d frames of the flood", n)
		}
	})
}
