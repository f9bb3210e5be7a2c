package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/nettest"
)

// sniffer records frames in a namespace that carry a marker.
type sniffer struct {
	where string
	fd    int
	stop  atomic.Bool
	done  chan struct{}

	mu   sync.Mutex
	seen map[string]int // "marker direction"
}

// sniff begins to record. ignoreIncoming leaves out what has just come in: in the VNet's
// namespace, and the tunnels', that is still the member's own pair. On the host only the
// interfaces whose names begin with links count.
func sniff(t *testing.T, where, space string, ignoreIncoming bool, links string) *sniffer {
	t.Helper()
	s := &sniffer{where: where, done: make(chan struct{}), seen: map[string]int{}}
	names := map[int]string{}
	err := nettest.In(space, func() (err error) {
		all := uint16(unix.ETH_P_ALL)
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all<<8|all>>8)); err != nil {
			return err
		}
		ifs, err := net.Interfaces()
		for _, i := range ifs {
			names[i.Index] = i.Name
		}
		return err
	})
	if err != nil {
		t.Fatalf("listen to packets in %s: %v", space, err)
	}
	_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.done)
		buf := make([]byte, 65536)
		for !s.stop.Load() {
			n, from, err := unix.Recvfrom(s.fd, buf, 0)
			ll, ok := from.(*unix.SockaddrLinklayer)
			if err != nil || !ok || ignoreIncoming && ll.Pkttype != unix.PACKET_OUTGOING || !strings.HasPrefix(names[ll.Ifindex], links) {
				continue
			}
			if m := marker(buf[:n]); m != "" {
				s.mu.Lock()
				s.seen[m]++
				s.mu.Unlock()
			}
		}
	}()
	t.Cleanup(s.end)
	return s
}

func (s *sniffer) end() {
	if !s.stop.Swap(true) {
		<-s.done
		unix.Close(s.fd)
	}
}

func (s *sniffer) count(marker string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[marker]
}

// Frames of attacks are known by a destination port from markerBase on, or by a text in
// their payload. The kernel gives no connection such a port: answers to one would look like them.
const (
	markerBase = 61300
	markerEnd  = 61400
	markerText = "sluice-marker-"
)

// marker finds what an attack put into a frame, wherever it is.
func marker(frame []byte) string {
	if i := bytes.Index(frame, []byte(markerText)); i >= 0 && len(frame) >= i+len(markerText)+2 {
		return string(frame[i : i+len(markerText)+2])
	}
	if len(frame) < 14+20+4 || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IP {
		return ""
	}
	ip := frame[14:]
	head := int(ip[0]&15) * 4
	if ip[9] != unix.IPPROTO_TCP && ip[9] != unix.IPPROTO_UDP || len(ip) < head+4 {
		return ""
	}
	if port := binary.BigEndian.Uint16(ip[head+2:]); port >= markerBase && port < markerEnd {
		return fmt.Sprint(port)
	}
	return ""
}

// frame is what forgedFrames sends.
type frame struct {
	what, link string
	src, dst   string
	srcMAC     net.HardwareAddr // nil: the interface's own
	proto      byte
	ipv6       bool
}

// forgedFrames sends whole frames, made by hand, as a process with CAP_NET_RAW could.
func (b *battlefield) forgedFrames(t *testing.T, from, host string) []attack {
	t.Helper()
	own, next := b.attacker.Address.String(), b.neighbour.Address.String()
	other := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	frames := []frame{
		{what: "another free address", link: "eth0", src: "10.20.0.77", dst: host, proto: unix.IPPROTO_UDP},
		{what: "the neighbour's address", link: "eth0", src: next, dst: host, proto: unix.IPPROTO_UDP},
		{what: "the endpoint's address", link: "eth0", src: "10.20.1.4", dst: host, proto: unix.IPPROTO_UDP},
		{what: "an outside address", link: "eth0", src: "192.0.2.9", dst: host, proto: unix.IPPROTO_UDP},
		{what: "another MAC", link: "eth0", src: own, dst: host, proto: unix.IPPROTO_UDP, srcMAC: other},
		{what: "the tunnel's address on eth0", link: "eth0", src: b.attacker.TunnelAddress.String(), dst: host, proto: unix.IPPROTO_UDP},
		{what: "to the neighbour, forged", link: "eth0", src: "10.20.1.4", dst: next, proto: unix.IPPROTO_UDP},
		{what: "GRE", link: "eth0", src: own, dst: host, proto: 47},
		{what: "ICMP redirect", link: "eth0", src: own, dst: host, proto: unix.IPPROTO_ICMP},
		{what: "IPv6", link: "eth0", ipv6: true},
		{what: "to the neighbour over the tunnel", link: "tun0", src: b.attacker.TunnelAddress.String(), dst: b.neighbour.TunnelAddress.String(), proto: unix.IPPROTO_UDP},
		{what: "to the neighbour's lease over the tunnel", link: "tun0", src: b.attacker.TunnelAddress.String(), dst: next, proto: unix.IPPROTO_UDP},
		{what: "to the host over the tunnel", link: "tun0", src: b.attacker.TunnelAddress.String(), dst: host, proto: unix.IPPROTO_UDP},
		{what: "from the lease over the tunnel", link: "tun0", src: own, dst: host, proto: unix.IPPROTO_UDP},
		{what: "as the neighbour to the relay", link: "tun0", src: b.neighbour.TunnelAddress.String(), dst: "169.254.0.1", proto: unix.IPPROTO_UDP},
		{what: "IPv6 over the tunnel", link: "tun0", ipv6: true},
	}
	macs := map[string]net.HardwareAddr{"eth0": nextHop(t, from, "eth0"), "tun0": nextHop(t, from, "tun0")}
	var out []attack
	for i, f := range frames {
		m := fmt.Sprintf("%s%02d", markerText, i)
		if err := nettest.In(from, func() error { return f.send(macs[f.link], m) }); err != nil {
			t.Fatalf("send %s: %v", f.what, err)
		}
		out = append(out, attack{"a frame with " + f.what, m})
	}
	return out
}

// nextHop finds the MAC address that frames of an interface go to.
func nextHop(t *testing.T, space, link string) net.HardwareAddr {
	t.Helper()
	for line := range strings.Lines(readIn(t, space, "/proc/thread-self/net/arp")) {
		w := strings.Fields(line)
		if len(w) > 5 && w[5] == link {
			mac, err := net.ParseMAC(w[3])
			if err != nil {
				t.Fatal(err)
			}
			return mac
		}
	}
	t.Fatalf("no neighbour on %s in %s", link, space)
	return nil
}

// send puts the frame on the wire of the thread's namespace.
func (f frame) send(dst net.HardwareAddr, payload string) error {
	link, err := net.InterfaceByName(f.link)
	if err != nil {
		return err
	}
	src := f.srcMAC
	if src == nil {
		src = link.HardwareAddr
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	kind, body := uint16(unix.ETH_P_IP), f.packet(payload)
	if f.ipv6 {
		kind = unix.ETH_P_IPV6
	}
	doc := binary.BigEndian.AppendUint16(append(append([]byte{}, dst...), src...), kind)
	to := unix.SockaddrLinklayer{Ifindex: link.Index, Protocol: kind<<8 | kind>>8, Halen: 6}
	copy(to.Addr[:], dst)
	return unix.Sendto(fd, append(doc, body...), 0, &to)
}

// packet is a whole IP packet with good checksums.
func (f frame) packet(payload string) []byte {
	if f.ipv6 {
		body := []byte(payload)
		p := []byte{0x60, 0, 0, 0, 0, byte(len(body)), 59, 64}
		src, dst := netip.MustParseAddr("fd00::5").As16(), netip.MustParseAddr("fd00::1").As16()
		return append(append(append(p, src[:]...), dst[:]...), body...)
	}
	var body []byte
	switch f.proto {
	case unix.IPPROTO_UDP: // no checksum: a receiver takes it
		body = []byte{0x9c, 0x40, 0x9c, 0x41, 0, byte(8 + len(payload)), 0, 0}
	case unix.IPPROTO_ICMP:
		body = []byte{5, 1, 0, 0, 10, 20, 0, 9}
	}
	body = append(body, payload...)
	if f.proto == unix.IPPROTO_ICMP {
		binary.BigEndian.PutUint16(body[2:], nettest.Checksum(body))
	}
	p := []byte{0x45, 0, 0, byte(20 + len(body)), 0, 1, 0, 0, 64, f.proto, 0, 0}
	src, dst := netip.MustParseAddr(f.src).As4(), netip.MustParseAddr(f.dst).As4()
	p = append(append(p, src[:]...), dst[:]...)
	binary.BigEndian.PutUint16(p[10:], nettest.Checksum(p))
	return append(p, body...)
}
