package dhcp

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	serverPort = 67
	clientPort = 68
	ipHeader   = 20
	udpHeader  = 8
	protoUDP   = 17
)

// packetConn sends and receives DHCP messages on an interface, below its addresses and
// the rules of its namespace.
type packetConn struct {
	f    *os.File
	raw  syscall.RawConn
	link int
	from netip.Addr
	to   [8]byte // the station that frames go to
}

// Listen opens a connection on an interface of the calling thread's network namespace,
// which sends as an address; the zero address is nobody's. Its frames go to a station, or
// to all if that is nil.
func Listen(link int, from netip.Addr, to net.HardwareAddr) (net.PacketConn, error) {
	station := [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	if to != nil {
		copy(station[:6], to)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	filter := answers()
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: network(unix.ETH_P_IP), Ifindex: link}))
	f := os.NewFile(uintptr(fd), "dhcp")
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &packetConn{f: f, raw: raw, link: link, from: from, to: station}, nil
}

// answers lets UDP to the client's port through, so that nothing else fills the socket.
func answers() []unix.SockFilter {
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 9},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 6, K: protoUDP},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 6},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jt: 4, K: 0x1fff}, // a later fragment
		{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 0},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: clientPort},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
}

func network(v uint16) uint16 { return v<<8 | v>>8 }

// ReadFrom implements net.PacketConn: the payload of the next message to the client's port.
func (c *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	buf := make([]byte, 65536)
	for {
		n, err := c.f.Read(buf)
		if err != nil {
			return 0, nil, err
		}
		if payload, from, ok := parse(buf[:n]); ok {
			return copy(b, payload), from, nil
		}
	}
}

// parse takes a message out of an IPv4 packet.
func parse(p []byte) (payload []byte, from *net.UDPAddr, ok bool) {
	if len(p) < ipHeader || p[0]>>4 != 4 || p[9] != protoUDP {
		return nil, nil, false
	}
	header, total := int(p[0]&0xf)*4, int(binary.BigEndian.Uint16(p[2:]))
	if header < ipHeader || total > len(p) || header+udpHeader > total || binary.BigEndian.Uint16(p[header+2:]) != clientPort {
		return nil, nil, false
	}
	length := int(binary.BigEndian.Uint16(p[header+4:]))
	if length < udpHeader || header+length > total {
		return nil, nil, false
	}
	return p[header+udpHeader : header+length], &net.UDPAddr{IP: net.IP(p[12:16]), Port: int(binary.BigEndian.Uint16(p[header:]))}, true
}

// WriteTo implements net.PacketConn.
func (c *packetConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	to, ok := addr.(*net.UDPAddr)
	if !ok || to.IP.To4() == nil {
		return 0, errors.New("dhcp: not an IPv4 address of UDP")
	}
	packet := pack(b, c.from, to)
	station := &unix.SockaddrLinklayer{Protocol: network(unix.ETH_P_IP), Ifindex: c.link, Halen: 6, Addr: c.to}
	var sent error
	err := c.raw.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), packet, 0, station)
		return !errors.Is(sent, unix.EAGAIN)
	})
	return len(b), errors.Join(err, sent)
}

// pack makes an IPv4 packet of a message.
func pack(b []byte, from netip.Addr, to *net.UDPAddr) []byte {
	p := make([]byte, ipHeader+udpHeader+len(b))
	p[0], p[8], p[9] = 0x45, 64, protoUDP
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	if from.Is4() {
		copy(p[12:], from.AsSlice())
	}
	copy(p[16:], to.IP.To4())
	binary.BigEndian.PutUint16(p[10:], checksum(p[:ipHeader], 0))
	udp := p[ipHeader:]
	binary.BigEndian.PutUint16(udp, clientPort)
	binary.BigEndian.PutUint16(udp[2:], uint16(to.Port))
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	copy(udp[udpHeader:], b)
	pseudo := protoUDP + uint32(len(udp))
	for i := 12; i < ipHeader; i += 2 {
		pseudo += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	sum := checksum(udp, pseudo)
	if sum == 0 {
		sum = 0xffff // zero would say that there is none
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
	return p
}

// checksum is that of RFC 1071, begun with a sum.
func checksum(b []byte, sum uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// Close implements net.PacketConn.
func (c *packetConn) Close() error { return c.f.Close() }

// LocalAddr implements net.PacketConn.
func (c *packetConn) LocalAddr() net.Addr { return &net.UDPAddr{IP: net.IPv4zero, Port: clientPort} }

// SetDeadline implements net.PacketConn.
func (c *packetConn) SetDeadline(t time.Time) error { return c.f.SetDeadline(t) }

// SetReadDeadline implements net.PacketConn.
func (c *packetConn) SetReadDeadline(t time.Time) error { return c.f.SetReadDeadline(t) }

// SetWriteDeadline implements net.PacketConn.
func (c *packetConn) SetWriteDeadline(t time.Time) error { return c.f.SetWriteDeadline(t) }
