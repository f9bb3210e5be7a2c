package e2e

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// raw is a whole Ethernet frame with IPv4 in it, all of which a test may choose. What is
// zero is as it should be.
type raw struct {
	link     string
	src, dst string
	from, to net.HardwareAddr // default: the interface's own, and its next hop's
	kind     uint16           // default: IPv4
	tag      uint16           // a VLAN, if not 0
	ttl      byte             // default: 64
	options  []byte           // a multiple of four bytes
	fragment uint16           // flags and offset
	proto    byte             // default: UDP
	sport    uint16           // default: 40000
	dport    uint16           // default: 40001
	flags    byte             // of TCP; default: SYN
	bare     bool             // no header above IP
	plain    bool             // sendAll puts no mark in
	text     string
}

const (
	moreFragments = 0x2000
	flagSYN       = 2
)

// packet gives IP and what is in it, with good checksums.
func (r raw) packet() []byte {
	head := 20 + len(r.options)
	body := r.body()
	p := make([]byte, head, head+len(body))
	p[0] = 0x40 | byte(head/4)
	binary.BigEndian.PutUint16(p[2:], uint16(head+len(body)))
	binary.BigEndian.PutUint16(p[4:], 0x5151) // fragments belong together
	binary.BigEndian.PutUint16(p[6:], r.fragment)
	p[8], p[9] = orByte(r.ttl, 64), orByte(r.proto, unix.IPPROTO_UDP)
	src, dst := netip.MustParseAddr(r.src).As4(), netip.MustParseAddr(r.dst).As4()
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	copy(p[20:], r.options)
	binary.BigEndian.PutUint16(p[10:], checksum(p))
	return append(p, body...)
}

func (r raw) body() []byte {
	if r.bare {
		return []byte(r.text)
	}
	var b []byte
	switch orByte(r.proto, unix.IPPROTO_UDP) {
	case unix.IPPROTO_UDP: // no checksum: a receiver takes it
		b = make([]byte, 8)
		length := 8 + len(r.text)
		if r.fragment&moreFragments != 0 {
			length += tailLength
		}
		binary.BigEndian.PutUint16(b[4:], uint16(length))
	case unix.IPPROTO_TCP:
		b = make([]byte, 20)
		binary.BigEndian.PutUint32(b[4:], 1)
		b[12], b[13] = 0x50, orByte(r.flags, flagSYN)
		binary.BigEndian.PutUint16(b[14:], 0xffff)
	default:
		return []byte(r.text)
	}
	binary.BigEndian.PutUint16(b, orPort(r.sport, 40000))
	binary.BigEndian.PutUint16(b[2:], orPort(r.dport, 40001))
	if b = append(b, r.text...); r.proto == unix.IPPROTO_TCP {
		binary.BigEndian.PutUint16(b[16:], checksum(append(r.pseudo(len(b)), b...)))
	}
	return b
}

// tailLength is how long the second half of a fragmented datagram is.
const tailLength = 16

// pseudo is what TCP's checksum covers of IP's header.
func (r raw) pseudo(n int) []byte {
	src, dst := netip.MustParseAddr(r.src).As4(), netip.MustParseAddr(r.dst).As4()
	return append(append(src[:], dst[:]...), 0, r.proto, byte(n>>8), byte(n))
}

func orByte(v, other byte) byte {
	if v == 0 {
		return other
	}
	return v
}

func orPort(v, other uint16) uint16 {
	if v == 0 {
		return other
	}
	return v
}

// tap puts frames on an interface of the namespace that it was opened in.
type tap struct {
	fd        int
	own, next net.HardwareAddr
	index     int
}

// openTap must be called in the namespace; next is where frames go if they don't say.
func openTap(link string, next net.HardwareAddr) (*tap, error) {
	i, err := net.InterfaceByName(link)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &tap{fd: fd, own: i.HardwareAddr, next: next, index: i.Index}, nil
}

func (w *tap) close() { unix.Close(w.fd) }

func (w *tap) send(r raw) error {
	from, to, kind := r.from, r.to, r.kind
	if from == nil {
		from = w.own
	}
	if to == nil {
		to = w.next
	}
	if kind == 0 {
		kind = unix.ETH_P_IP
	}
	doc := append(append([]byte{}, to...), from...)
	if r.tag != 0 {
		doc = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(doc, unix.ETH_P_8021Q), r.tag)
	}
	doc = binary.BigEndian.AppendUint16(doc, kind)
	if kind == unix.ETH_P_IP {
		return w.write(append(doc, r.packet()...))
	}
	return w.write(append(doc, r.text...))
}

func (w *tap) write(frame []byte) error {
	to := unix.SockaddrLinklayer{Ifindex: w.index, Halen: 6}
	copy(to.Addr[:], frame)
	return unix.Sendto(w.fd, frame, 0, &to)
}
