package flowlog

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/sluice-gateway/sluice/internal/policy"
)

// denied is a packet that a rule denied, as the kernel reports it.
type denied struct {
	FiveTuple
	rule     policy.LoggedRule
	bytes    uint64
	sequence uint32 // of the reports to this socket
}

// Attributes of a log message.
const (
	logPayload  = 9
	logPrefix   = 10
	logSequence = 12
)

// parseDenied reads a log message behind its nfgenmsg. Its number counts also where the
// packet is none of ours.
func parseDenied(b []byte) (d denied, ok bool) {
	var named, read bool
	well := attributes(b, func(kind uint16, v []byte) {
		switch kind {
		case logPayload:
			read = d.parsePacket(v)
		case logPrefix:
			d.rule, named = policy.ParseLogPrefix(string(bytes.TrimRight(v, "\x00")))
		case logSequence:
			d.sequence = uint32(number(v))
		}
	})
	return d, well && named && read
}

// parsePacket reads the beginning of an IPv4 packet.
func (d *denied) parsePacket(b []byte) bool {
	const header = 20
	if len(b) < header || b[0]>>4 != 4 {
		return false
	}
	d.bytes = uint64(binary.BigEndian.Uint16(b[2:]))
	d.Protocol = b[9]
	d.Source, d.Destination = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	n := int(b[0]&15) * 4
	if n < header || len(b) < n+8 || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 { // a later fragment has no ports
		return true
	}
	switch d.Protocol {
	case 6, 17:
		d.SourcePort, d.DestinationPort = binary.BigEndian.Uint16(b[n:]), binary.BigEndian.Uint16(b[n+2:])
	case 1:
		d.SourcePort = binary.BigEndian.Uint16(b[n+4:]) // the identifier of a ping
	}
	return true
}
