package postgres

import (
	"encoding/binary"
	"math"
	"unicode/utf8"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
)

// This file appends values by the block: the same as append does one by one, in loops
// without a call per value. What a loop does not know (null, what does not fit, what is
// malformed) it leaves to append.

// A blockFunc decodes values into dst, which is as long as at, up to the first that it
// leaves to append, and returns how many. bytes has slack behind every value.
type blockFunc[T any] func(dst []T, bytes []byte, at []uint32) int

func (c *fixed[T]) appendBlock(bytes []byte, at []uint32) (int, error) {
	for i := 0; i < len(at); i++ {
		if c.block != nil {
			i += c.appendRun(bytes, at[i:])
			if i == len(at) {
				break
			}
		}
		if err := c.append(cell(bytes, at[i])); err != nil {
			return i, err
		}
	}
	return len(at), nil
}

func (c *fixed[T]) appendRun(bytes []byte, at []uint32) int {
	if c.vals == nil {
		c.vals = c.spare.take()
	}
	have := len(c.vals)
	c.vals = grow(c.vals, len(at))
	n := c.block(c.vals[have:have+len(at)], bytes, at)
	c.vals = c.vals[:have+n]
	c.addValids(n)
	return n
}

// grow makes room for n more values.
func grow[T any](s []T, n int) []T {
	if cap(s)-len(s) >= n {
		return s[:len(s)+n]
	}
	bigger := make([]T, len(s)+n, max(2*cap(s), len(s)+n))
	copy(bigger, s)
	return bigger
}

func blockInt16(dst []int16, bytes []byte, at []uint32) int {
	dst = dst[:len(at)]
	for i, a := range at {
		v := binary.BigEndian.Uint64(bytes[a:])
		if v>>32 != 2 {
			return i
		}
		dst[i] = int16(v >> 16)
	}
	return len(at)
}

// block4 is for the types of four bytes that are the same in Arrow.
func block4[T int32 | uint32](dst []T, bytes []byte, at []uint32) int {
	dst = dst[:len(at)]
	for i, a := range at {
		v := binary.BigEndian.Uint64(bytes[a:])
		if v>>32 != 4 {
			return i
		}
		dst[i] = T(v)
	}
	return len(at)
}

func blockFloat32(dst []float32, bytes []byte, at []uint32) int {
	dst = dst[:len(at)]
	for i, a := range at {
		v := binary.BigEndian.Uint64(bytes[a:])
		if v>>32 != 4 {
			return i
		}
		dst[i] = math.Float32frombits(uint32(v))
	}
	return len(at)
}

func blockDate(dst []arrow.Date32, bytes []byte, at []uint32) int {
	dst = dst[:len(at)]
	for i, a := range at {
		v := binary.BigEndian.Uint64(bytes[a:])
		days := int32(v)
		if v>>32 != 4 || days > math.MaxInt32-epochDays || days == math.MinInt32 {
			return i
		}
		dst[i] = arrow.Date32(days + epochDays)
	}
	return len(at)
}

func blockInt64(dst []int64, bytes []byte, at []uint32) int {
	dst = dst[:len(at)]
	for i, a := range at {
		v := bytes[a:][:12]
		if binary.BigEndian.Uint32(v) != 8 {
			return i
		}
		dst[i] = int64(binary.BigEndian.Uint64(v[4:]))
	}
	return len(at)
}

func blockFloat64(dst []float64, bytes []byte, at []uint32) int {
	dst = dst[:len(at)]
	for i, a := range at {
		v := bytes[a:][:12]
		if binary.BigEndian.Uint32(v) != 8 {
			return i
		}
		dst[i] = math.Float64frombits(binary.BigEndian.Uint64(v[4:]))
	}
	return len(at)
}

func blockTimestamp(dst []arrow.Timestamp, bytes []byte, at []uint32) int {
	dst = dst[:len(at)]
	for i, a := range at {
		v := bytes[a:][:12]
		us := int64(binary.BigEndian.Uint64(v[4:]))
		if binary.BigEndian.Uint32(v) != 8 || us > math.MaxInt64-epochMicros || us == math.MinInt64 {
			return i
		}
		dst[i] = arrow.Timestamp(us + epochMicros)
	}
	return len(at)
}

// blockDecimal128 decodes numbers of up to four groups of four digits, in 64 bits.
func blockDecimal128(precision, scale int32) blockFunc[decimal128.Num] {
	limit := uint64(math.MaxInt64)
	if precision < int32(len(pow10)) {
		limit = pow10[precision]
	}
	return func(dst []decimal128.Num, bytes []byte, at []uint32) int {
		dst = dst[:len(at)]
		for i, a := range at {
			units, negative, ok := readSmallNumeric(bytes[a:], int(scale))
			if !ok || units >= limit {
				return i
			}
			if negative {
				dst[i] = decimal128.FromI64(-int64(units))
			} else {
				dst[i] = decimal128.New(0, units)
			}
		}
		return len(at)
	}
}

// readSmallNumeric reads a value with its length as units of 10^-scale, if that is
// simple. v has slack behind the value.
func readSmallNumeric(v []byte, scale int) (units uint64, negative, ok bool) {
	header := binary.BigEndian.Uint64(v[4:]) // groups, weight, sign, and a scale for display
	n, sign := int(header>>48), uint16(header>>16)
	if n == 0 || n > 4 || binary.BigEndian.Uint32(v) != uint32(8+2*n) || sign&^numericNegative != 0 {
		return 0, false, false
	}
	digits := v[12:][:2*n]
	last := 2*n - 2
	for i := 0; i < last; i += 2 {
		group := uint64(binary.BigEndian.Uint16(digits[i:]))
		if group > 9999 {
			return 0, false, false
		}
		units = units*10_000 + group
	}
	group := uint64(binary.BigEndian.Uint16(digits[last:]))
	shift := 4*(int(int16(header>>32))-n+1) + scale
	if group > 9999 || shift < -4 || shift > 18-4*n {
		return 0, false, false
	}
	if shift >= 0 {
		return (units*10_000 + group) * pow10[shift], sign != 0, true
	}
	// Zeros are cut off the last group; others would not be the type's.
	cut := uint32(pow10[-shift])
	q := uint32(group) / cut
	return units*pow10[4+shift] + uint64(q), sign != 0, q*cut == uint32(group)
}

func (c *boolean) appendBlock(bytes []byte, at []uint32) (int, error) {
	return appendEach(c, bytes, at)
}

func (c *list) appendBlock(bytes []byte, at []uint32) (int, error) {
	return appendEach(c, bytes, at)
}

func appendEach(c column, bytes []byte, at []uint32) (int, error) {
	for i, a := range at {
		if err := c.append(cell(bytes, a)); err != nil {
			return i, err
		}
	}
	return len(at), nil
}

func (c *variable) appendBlock(bytes []byte, at []uint32) (int, error) {
	for i := 0; i < len(at); i++ {
		n, err := c.appendRun(bytes, at[i:])
		if i += n; err != nil || i == len(at) {
			return i, err
		}
		if err := c.append(nil); err != nil {
			return i, err
		}
	}
	return len(at), nil
}

// appendRun appends up to the first null, and then checks whether all of it is UTF-8.
func (c *variable) appendRun(bytes []byte, at []uint32) (int, error) {
	if c.data == nil {
		c.data = c.spare.take()
	}
	if c.ends.at == nil {
		c.ends.begin()
	}
	start, first := len(c.data), len(c.ends.at)
	c.ends.at = grow(c.ends.at, len(at))
	ends := c.ends.at[first:]
	n := 0
	for ; n < len(at); n++ {
		size := int32(binary.BigEndian.Uint32(bytes[at[n]:]))
		if size < 0 {
			break
		}
		c.data = appendShort(c.data, bytes[at[n]+4:], int(size))
		ends[n] = int32(len(c.data))
	}
	c.ends.at = c.ends.at[:first+n]
	bad := n
	if c.isText && !isASCII(c.data[start:]) {
		bad = c.firstNotUTF8(start, ends[:n])
	}
	c.addValids(bad)
	if bad < n {
		return bad, notUTF8()
	}
	return n, nil
}

// appendShort appends the first n bytes of v, short ones as one word of as many bytes
// as there is slack.
func appendShort(to, v []byte, n int) []byte {
	have := len(to)
	if n > slack || cap(to)-have < slack {
		return append(to, v[:n]...)
	}
	*(*[slack]byte)(to[have : have+slack]) = *(*[slack]byte)(v)
	return to[:have+n]
}

// firstNotUTF8 returns which of the values that end there, the first of which begins at
// start, is the first that is not UTF-8.
func (c *variable) firstNotUTF8(start int, ends []int32) int {
	for i, end := range ends {
		if !utf8.Valid(c.data[start:end]) {
			return i
		}
		start = int(end)
	}
	return len(ends)
}

func isASCII(v []byte) bool {
	const high = 0x8080808080808080
	for len(v) >= 8 {
		if binary.LittleEndian.Uint64(v)&high != 0 {
			return false
		}
		v = v[8:]
	}
	for _, b := range v {
		if b >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// addValids is addValid so many times.
func (v *validity) addValids(n int) {
	if v.bits == nil {
		v.n += n
		return
	}
	for range n {
		v.addValid()
	}
}
