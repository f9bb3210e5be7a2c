package policy

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
	"golang.org/x/sys/unix"
)

var protocolNumbers = map[core.Protocol]byte{
	core.ProtocolICMP: unix.IPPROTO_ICMP, core.ProtocolTCP: unix.IPPROTO_TCP, core.ProtocolUDP: unix.IPPROTO_UDP,
	core.ProtocolESP: unix.IPPROTO_ESP, core.ProtocolAH: unix.IPPROTO_AH,
}

// packet makes the first packet of a flow, with an IP identification to know it by.
func packet(f Flow, id uint16) []byte {
	payload := firstPayload(f, id)
	p := make([]byte, 20, 20+len(payload))
	p[0], p[8], p[9] = 0x45, 64, protocolNumbers[f.Protocol]
	binary.BigEndian.PutUint16(p[2:], uint16(20+len(payload)))
	binary.BigEndian.PutUint16(p[4:], id)
	src, dst := f.Source.As4(), f.Destination.As4()
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	binary.BigEndian.PutUint16(p[10:], checksum(p, 0))
	return append(p, payload...)
}

func firstPayload(f Flow, id uint16) []byte {
	switch f.Protocol {
	case core.ProtocolTCP:
		return segment(f, flagSYN)
	case core.ProtocolUDP:
		b := make([]byte, 12)
		binary.BigEndian.PutUint16(b[0:], f.SourcePort)
		binary.BigEndian.PutUint16(b[2:], f.DestinationPort)
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
		return b
	case core.ProtocolICMP:
		b := make([]byte, 12)
		b[0] = 8
		binary.BigEndian.PutUint16(b[4:], id)
		binary.BigEndian.PutUint16(b[2:], checksum(b, 0))
		return b
	case core.ProtocolAH:
		b := make([]byte, 24)
		b[0], b[1], b[7] = 59, 4, 1
		return b
	}
	b := make([]byte, 24)
	binary.BigEndian.PutUint32(b, 0x1001)
	return b
}

func segment(f Flow, flags byte) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b[0:], f.SourcePort)
	binary.BigEndian.PutUint16(b[2:], f.DestinationPort)
	binary.BigEndian.PutUint32(b[4:], 1000)
	b[12], b[13] = 5<<4, flags
	binary.BigEndian.PutUint16(b[14:], 64240)
	src, dst := f.Source.As4(), f.Destination.As4()
	sum := uint32(unix.IPPROTO_TCP) + uint32(len(b))
	for _, a := range [][4]byte{src, dst} {
		sum += uint32(binary.BigEndian.Uint16(a[:2])) + uint32(binary.BigEndian.Uint16(a[2:]))
	}
	binary.BigEndian.PutUint16(b[16:], checksum(b, sum))
	return b
}

func checksum(b []byte, sum uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func send(t *testing.T, fd int, p []byte) {
	t.Helper()
	to := &unix.SockaddrInet4{Addr: [4]byte(p[16:20])}
	if err := unix.Sendto(fd, p, 0, to); err != nil {
		t.Fatalf("send to %v: %v", netip.AddrFrom4(to.Addr), err)
	}
}

func packetID(p []byte) uint16              { return binary.BigEndian.Uint16(p[4:]) }
func packetSource(p []byte) netip.Addr      { return netip.AddrFrom4([4]byte(p[12:16])) }
func packetDestination(p []byte) netip.Addr { return netip.AddrFrom4([4]byte(p[16:20])) }
func packetProtocol(p []byte) byte          { return p[9] }
func packetPayload(p []byte) []byte         { return p[int(p[0]&15)*4:] }
func packetPorts(p []byte) (src, dst uint16) {
	b := packetPayload(p)
	if len(b) < 4 {
		return 0, 0
	}
	return binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
}

// TCP flags.
const (
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)
