package postgres

import (
	"encoding/binary"
	"fmt"
	"math/big"
	"math/bits"

	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/arrow/decimal256"
)

// Signs of a binary numeric.
const (
	numericPositive = 0x0000
	numericNegative = 0x4000
	numericNaN      = 0xC000
	numericPosInf   = 0xD000
	numericNegInf   = 0xF000
)

// numeric is a binary numeric: the digits, each two bytes and 0..9999, times
// 10^exp10 of the last one.
type numeric struct {
	negative bool
	digits   []byte
	exp10    int
}

func parseNumeric(v []byte) (numeric, error) {
	if len(v) < 8 {
		return numeric{}, malformed("numeric", v)
	}
	n := int(binary.BigEndian.Uint16(v))
	weight := int(int16(binary.BigEndian.Uint16(v[2:])))
	sign := binary.BigEndian.Uint16(v[4:])
	switch sign {
	case numericNaN:
		return numeric{}, &misfit{"NaN"}
	case numericPosInf:
		return numeric{}, &misfit{"Infinity"}
	case numericNegInf:
		return numeric{}, &misfit{"-Infinity"}
	case numericPositive, numericNegative:
	default:
		return numeric{}, malformed("numeric", v)
	}
	if len(v) != 8+2*n {
		return numeric{}, malformed("numeric", v)
	}
	for i := 8; i < len(v); i += 2 {
		if binary.BigEndian.Uint16(v[i:]) > 9999 {
			return numeric{}, malformed("numeric", v)
		}
	}
	return numeric{negative: sign == numericNegative, digits: v[8:], exp10: 4 * (weight - n + 1)}, nil
}

func tooWide(precision, scale int32) error {
	return &misfit{fmt.Sprintf("a number that numeric(%d,%d) does not hold", precision, scale)}
}

var pow10 = func() (p [20]uint64) {
	p[0] = 1
	for i := 1; i < len(p); i++ {
		p[i] = p[i-1] * 10
	}
	return p
}()

// readDecimal128 reads a numeric as an integer of 10^-scale units.
func readDecimal128(v []byte, precision, scale int32) (decimal128.Num, error) {
	n, err := parseNumeric(v)
	if err != nil {
		return decimal128.Num{}, err
	}
	shift := n.exp10 + int(scale)
	// Up to 11 groups of four digits: the widest that 38 digits can straddle. Trailing
	// zero groups are never sent, so more of them cannot fit.
	if len(n.digits) == 0 {
		return decimal128.Num{}, nil
	}
	if len(n.digits) > 22 || shift > 38 || shift < -4 {
		return decimal128.Num{}, tooWide(precision, scale)
	}
	last := len(n.digits) - 2
	hi, lo, ok := uint64(0), uint64(0), true
	for i := 0; i < last && ok; i += 2 {
		hi, lo, ok = mulAdd(hi, lo, 10_000, uint64(binary.BigEndian.Uint16(n.digits[i:])))
	}
	// A negative shift cuts zeros off the last group; others would not be the type's.
	group, factor := uint64(binary.BigEndian.Uint16(n.digits[last:])), uint64(10_000)
	if shift < 0 {
		cut := pow10[-shift]
		if group%cut != 0 {
			return decimal128.Num{}, tooWide(precision, scale)
		}
		group, factor = group/cut, factor/cut
	}
	if ok {
		hi, lo, ok = mulAdd(hi, lo, factor, group)
	}
	for ; shift > 0 && ok; shift -= min(shift, 19) {
		hi, lo, ok = mulAdd(hi, lo, pow10[min(shift, 19)], 0)
	}
	if !ok || hi>>63 != 0 {
		return decimal128.Num{}, tooWide(precision, scale)
	}
	num := decimal128.New(int64(hi), lo)
	if !num.FitsInPrecision(precision) {
		return decimal128.Num{}, tooWide(precision, scale)
	}
	if n.negative {
		num = num.Negate()
	}
	return num, nil
}

// mulAdd returns (hi,lo) × by + add, and whether that fits in 128 bits.
func mulAdd(hi, lo, by, add uint64) (uint64, uint64, bool) {
	over, h1 := bits.Mul64(hi, by)
	h2, l := bits.Mul64(lo, by)
	l, c := bits.Add64(l, add, 0)
	h, c2 := bits.Add64(h1, h2, c)
	return h, l, over == 0 && c2 == 0
}

// readDecimal256 is readDecimal128 for up to 76 digits. Such columns are rare, so
// it computes in package big.
func readDecimal256(v []byte, precision, scale int32) (decimal256.Num, error) {
	n, err := parseNumeric(v)
	if err != nil {
		return decimal256.Num{}, err
	}
	shift := n.exp10 + int(scale)
	if len(n.digits) == 0 {
		return decimal256.Num{}, nil
	}
	if len(n.digits) > 42 || shift > 76 || shift < -4 {
		return decimal256.Num{}, tooWide(precision, scale)
	}
	x, base := new(big.Int), big.NewInt(10_000)
	for i := 0; i < len(n.digits); i += 2 {
		x.Mul(x, base).Add(x, big.NewInt(int64(binary.BigEndian.Uint16(n.digits[i:]))))
	}
	if shift >= 0 {
		x.Mul(x, new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(shift)), nil))
	} else {
		rest := new(big.Int)
		if x.QuoRem(x, new(big.Int).SetUint64(pow10[-shift]), rest); rest.Sign() != 0 {
			return decimal256.Num{}, tooWide(precision, scale)
		}
	}
	if x.CmpAbs(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(precision)), nil)) >= 0 {
		return decimal256.Num{}, tooWide(precision, scale)
	}
	if n.negative {
		x.Neg(x)
	}
	return decimal256.FromBigInt(x), nil
}
