// Package nettest is what tests of real networks share: frames made by hand and put on
// an interface, a lookout for them, and the state of a device in words. Tests alone may
// use it.
package nettest

import (
	"cmp"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Frame is a whole Ethernet frame with IPv4 in it, all of which a test may choose. What is
// zero is as it should be.
type Frame struct {
	Src, Dst   string
	From, To   net.HardwareAddr // default: the interface's own, and its next hop's
	Kind       uint16           // default: IPv4
	Tag        uint16           // a VLAN, if not 0
	TTL        byte             // default: 64
	Options    []byte           // a multiple of four bytes
	Fragment   uint16           // flags and offset
	Protocol   byte             // default: UDP
	SourcePort uint16           // default: 40000
	Port       uint16           // default: 40001
	Flags      byte             // of TCP; default: SYN
	Bare       bool             // no header above IP
	Plain      bool             // sendAll puts no mark in
	Text       string
}

// MoreFragments is the flag of all fragments but the last one.
const MoreFragments = 0x2000

const flagSYN = 2

// packet gives IP and what is in it, with good checksums.
func (r Frame) packet() []byte {
	head := 20 + len(r.Options)
	body := r.body()
	p := make([]byte, head, head+len(body))
	p[0] = 0x40 | byte(head/4)
	binary.BigEndian.PutUint16(p[2:], uint16(head+len(body)))
	binary.BigEndian.PutUint16(p[4:], 0x5151) // fragments belong together
	binary.BigEndian.PutUint16(p[6:], r.Fragment)
	p[8], p[9] = cmp.Or(r.TTL, 64), cmp.Or(r.Protocol, unix.IPPROTO_UDP)
	src, dst := netip.MustParseAddr(r.Src).As4(), netip.MustParseAddr(r.Dst).As4()
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	copy(p[20:], r.Options)
	binary.BigEndian.PutUint16(p[10:], Checksum(p))
	return append(p, body...)
}

func (r Frame) body() []byte {
	if r.Bare {
		return []byte(r.Text)
	}
	var b []byte
	switch cmp.Or(r.Protocol, unix.IPPROTO_UDP) {
	case unix.IPPROTO_UDP: // no checksum: a receiver takes it
		b = make([]byte, 8)
		length := 8 + len(r.Text)
		if r.Fragment&MoreFragments != 0 {
			length += TailLength
		}
		binary.BigEndian.PutUint16(b[4:], uint16(length))
	case unix.IPPROTO_TCP:
		b = make([]byte, 20)
		binary.BigEndian.PutUint32(b[4:], 1)
		b[12], b[13] = 0x50, cmp.Or(r.Flags, flagSYN)
		binary.BigEndian.PutUint16(b[14:], 0xffff)
	default:
		return []byte(r.Text)
	}
	binary.BigEndian.PutUint16(b, cmp.Or(r.SourcePort, 40000))
	binary.BigEndian.PutUint16(b[2:], cmp.Or(r.Port, 40001))
	if b = slices.Concat(b, []byte(r.Text)); r.Protocol == unix.IPPROTO_TCP {
		binary.BigEndian.PutUint16(b[16:], Checksum(append(r.pseudo(len(b)), b...)))
	}
	return b
}

// TailLength is how long the second half of a fragmented datagram is.
const TailLength = 16

// pseudo is what TCP's checksum covers of IP's header.
func (r Frame) pseudo(n int) []byte {
	src, dst := netip.MustParseAddr(r.Src).As4(), netip.MustParseAddr(r.Dst).As4()
	return append(append(src[:], dst[:]...), 0, r.Protocol, byte(n>>8), byte(n))
}

// Tap puts frames on an interface of the namespace that it was opened in.
type Tap struct {
	fd        int
	Own, Next net.HardwareAddr
	index     int
}

// OpenTap must be called in the namespace; next is where frames go if they don't say.
func OpenTap(link string, next net.HardwareAddr) (*Tap, error) {
	i, err := net.InterfaceByName(link)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &Tap{fd: fd, Own: i.HardwareAddr, Next: next, index: i.Index}, nil
}

// Close ends it.
func (w *Tap) Close() { unix.Close(w.fd) }

// Send puts a frame on the interface.
func (w *Tap) Send(r Frame) error {
	from, to, kind := r.From, r.To, r.Kind
	if from == nil {
		from = w.Own
	}
	if to == nil {
		to = w.Next
	}
	if kind == 0 {
		kind = unix.ETH_P_IP
	}
	doc := append(append([]byte{}, to...), from...)
	if r.Tag != 0 {
		doc = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(doc, unix.ETH_P_8021Q), r.Tag)
	}
	doc = binary.BigEndian.AppendUint16(doc, kind)
	if kind == unix.ETH_P_IP {
		return w.Write(append(doc, r.packet()...))
	}
	return w.Write(append(doc, r.Text...))
}

// Write puts a whole frame on the interface. While a busy machine has no room for it, it waits.
func (w *Tap) Write(frame []byte) error {
	to := unix.SockaddrLinklayer{Ifindex: w.index, Halen: 6}
	copy(to.Addr[:], frame)
	for tries := 0; ; tries++ {
		err := unix.Sendto(w.fd, frame, 0, &to)
		if err != unix.ENOBUFS || tries == 5000 {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// Checksum is that of IP, TCP and UDP.
func Checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// ARP gives the body of an ARP message: sender is at mac, as told to target at to. Op is 1
// for a question and 2 for an answer.
func ARP(op byte, mac net.HardwareAddr, sender string, to net.HardwareAddr, target string) string {
	from, at := netip.MustParseAddr(sender).As4(), netip.MustParseAddr(target).As4()
	body := append([]byte{0, 1, 8, 0, 6, 4, 0, op}, mac...)
	body = append(append(append(body, from[:]...), to...), at[:]...)
	return string(body)
}
