package policy

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// span is a closed interval of IPv4 addresses or ports.
type span struct{ lo, hi uint32 }

// everything is the span of all IPv4 addresses.
var everything = span{0, 1<<32 - 1}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

func prefixSpan(p netip.Prefix) span {
	lo := number(p.Masked().Addr())
	return span{lo, lo | uint32(uint64(1)<<(32-p.Bits())-1)}
}

// merge sorts spans and joins those that overlap or touch: nftables refuses overlaps.
func merge(in []span) []span {
	in = slices.Clone(in)
	slices.SortFunc(in, func(a, b span) int { return cmp.Compare(a.lo, b.lo) })
	var out []span
	for _, s := range in {
		last := len(out) - 1
		if last >= 0 && uint64(s.lo) <= uint64(out[last].hi)+1 {
			out[last].hi = max(out[last].hi, s.hi)
			continue
		}
		out = append(out, s)
	}
	return out
}

// complement gives what is in none of the spans, which must be merged.
func complement(in []span) []span {
	var out []span
	next := uint64(0)
	for _, s := range in {
		if uint64(s.lo) > next {
			out = append(out, span{uint32(next), s.lo - 1})
		}
		next = uint64(s.hi) + 1
	}
	if next <= uint64(everything.hi) {
		out = append(out, span{uint32(next), everything.hi})
	}
	return out
}

// addressText writes a span as nftables does: an address, a prefix or a range.
func (s span) addressText() string {
	lo := address(s.lo)
	if s.lo == s.hi {
		return lo.String()
	}
	for bits := range 32 {
		if p := netip.PrefixFrom(lo, bits); prefixSpan(p) == s {
			return p.String()
		}
	}
	return lo.String() + "-" + address(s.hi).String()
}

func (s span) portText() string {
	if s.lo == s.hi {
		return strconv.Itoa(int(s.lo))
	}
	return strconv.Itoa(int(s.lo)) + "-" + strconv.Itoa(int(s.hi))
}

// oneOf writes one value, or an anonymous set of several.
func oneOf(values []string) string {
	if len(values) == 1 {
		return values[0]
	}
	return "{ " + strings.Join(values, ", ") + " }"
}

// texts maps spans to their text.
func texts(in []span, text func(span) string) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = text(s)
	}
	return out
}
