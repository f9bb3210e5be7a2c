package flowlog

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// conn is a tracked flow as the kernel tells it.
type conn struct {
	FiveTuple
	mark           uint32
	dying          bool // its end is being told
	closed         bool // TCP that can carry nothing any more
	sent, received Counters
	start, stop    time.Time
}

// Attributes of a conntrack message.
const (
	ctaOrig          = 1
	ctaStatus        = 3
	ctaProtoInfo     = 4
	ctaMark          = 8
	ctaSent          = 9
	ctaReceived      = 10
	ctaTimes         = 20
	ctaTupleIP       = 1
	ctaTupleProto    = 2
	ctaProtoTCP      = 1
	statusDying      = 1 << 9
	tcpStateTimeWait = 7
	tcpStateClose    = 8
)

// attributes calls fn for each netlink attribute; it reports whether b was well formed.
func attributes(b []byte, fn func(kind uint16, value []byte)) bool {
	const header, typeMask = 4, 1<<14 - 1
	for len(b) >= header {
		n := int(binary.NativeEndian.Uint16(b))
		if n < header || n > len(b) {
			return false
		}
		fn(binary.NativeEndian.Uint16(b[2:])&typeMask, b[header:n])
		b = b[min((n+3)&^3, len(b)):]
	}
	return len(b) == 0
}

// parseConn reads a conntrack message behind its nfgenmsg. Only IPv4 flows are known.
func parseConn(b []byte) (conn, bool) {
	c := conn{start: time.UnixMilli(0)} // where the kernel was told not to keep times
	ok := attributes(b, func(kind uint16, v []byte) {
		switch kind {
		case ctaOrig:
			c.FiveTuple = parseOrig(v)
		case ctaStatus:
			c.dying = number(v)&statusDying != 0
		case ctaProtoInfo:
			c.closed = parseClosed(v)
		case ctaMark:
			c.mark = uint32(number(v))
		case ctaSent:
			c.sent = parseCounters(v)
		case ctaReceived:
			c.received = parseCounters(v)
		case ctaTimes:
			c.start, c.stop = parseTimes(v)
		}
	})
	return c, ok && c.Source.IsValid() && c.Destination.IsValid()
}

// number reads an unsigned one of 1, 2, 4 or 8 bytes, in network order.
func number(v []byte) uint64 {
	var n uint64
	if len(v) > 8 {
		return 0
	}
	for _, b := range v {
		n = n<<8 | uint64(b)
	}
	return n
}

func parseOrig(b []byte) (t FiveTuple) {
	attributes(b, func(kind uint16, v []byte) {
		switch kind {
		case ctaTupleIP:
			attributes(v, func(kind uint16, v []byte) {
				a, _ := netip.AddrFromSlice(v)
				switch {
				case !a.Is4():
				case kind == 1:
					t.Source = a
				case kind == 2:
					t.Destination = a
				}
			})
		case ctaTupleProto:
			attributes(v, func(kind uint16, v []byte) {
				switch kind {
				case 1:
					t.Protocol = uint8(number(v))
				case 2, 4: // 4: the identifier of a ping
					t.SourcePort = uint16(number(v))
				case 3:
					t.DestinationPort = uint16(number(v))
				}
			})
		}
	})
	return t
}

func parseClosed(b []byte) (closed bool) {
	attributes(b, func(kind uint16, v []byte) {
		if kind == ctaProtoTCP {
			attributes(v, func(kind uint16, v []byte) {
				if n := number(v); kind == 1 {
					closed = n == tcpStateTimeWait || n == tcpStateClose
				}
			})
		}
	})
	return closed
}

func parseCounters(b []byte) (c Counters) {
	attributes(b, func(kind uint16, v []byte) {
		switch kind {
		case 1:
			c.Packets = number(v)
		case 2:
			c.Bytes = number(v)
		}
	})
	return c
}

func parseTimes(b []byte) (start, stop time.Time) {
	attributes(b, func(kind uint16, v []byte) {
		switch kind {
		case 1:
			start = time.Unix(0, int64(number(v)))
		case 2:
			stop = time.Unix(0, int64(number(v)))
		}
	})
	return start, stop
}
