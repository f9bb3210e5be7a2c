package format

import (
	"math"
	"math/big"
	"strconv"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
)

// decimalAppender writes decimals of any width, exactly; nil for other arrays.
func decimalAppender(arr arrow.Array) appender {
	t, ok := arr.DataType().(arrow.DecimalType)
	if !ok {
		return nil
	}
	scale := int(t.GetScale())
	switch a := arr.(type) {
	case *array.Decimal32:
		return func(dst []byte, row int) []byte { return appendSmallDecimal(dst, int64(a.Value(row)), scale) }
	case *array.Decimal64:
		return func(dst []byte, row int) []byte { return appendSmallDecimal(dst, int64(a.Value(row)), scale) }
	case *array.Decimal128:
		return func(dst []byte, row int) []byte {
			v := a.Value(row)
			// The high half of a number that fits into 64 bits is its sign, spread out.
			if v.HighBits() == int64(v.LowBits())>>63 {
				return appendSmallDecimal(dst, int64(v.LowBits()), scale)
			}
			return appendDecimal(dst, v.BigInt(), scale)
		}
	case *array.Decimal256:
		return func(dst []byte, row int) []byte { return appendDecimal(dst, a.Value(row).BigInt(), scale) }
	}
	return nil
}

func appendSmallDecimal(dst []byte, unscaled int64, scale int) []byte {
	magnitude := uint64(unscaled)
	if unscaled < 0 {
		dst, magnitude = append(dst, '-'), -magnitude
	}
	var digits [20]byte
	return appendScaled(dst, strconv.AppendUint(digits[:0], magnitude, 10), scale)
}

func appendDecimal(dst []byte, unscaled *big.Int, scale int) []byte {
	if unscaled.Sign() < 0 {
		dst = append(dst, '-')
	}
	return appendScaled(dst, new(big.Int).Abs(unscaled).Append(nil, 10), scale)
}

// appendScaled puts the decimal point into digits.
func appendScaled(dst, digits []byte, scale int) []byte {
	point := len(digits) - scale
	switch {
	case scale <= 0:
		dst = append(dst, digits...)
		for ; scale < 0 && string(digits) != "0"; scale++ {
			dst = append(dst, '0')
		}
		return dst
	case point > 0:
		dst = append(dst, digits[:point]...)
		return append(append(dst, '.'), digits[point:]...)
	}
	dst = append(dst, '0', '.')
	for ; point < 0; point++ {
		dst = append(dst, '0')
	}
	return append(dst, digits...)
}

// temporalAppender writes dates, times, timestamps, durations and intervals; nil for
// other arrays.
func temporalAppender(arr arrow.Array) appender {
	switch a := arr.(type) {
	case *array.Date32:
		return func(dst []byte, row int) []byte { return appendDate(dst, int64(a.Value(row))*86400) }
	case *array.Date64:
		return func(dst []byte, row int) []byte { return appendDate(dst, floorDiv(int64(a.Value(row)), 1000)) }
	case *array.Time32:
		per := perSecond(a.DataType().(*arrow.Time32Type).Unit)
		return func(dst []byte, row int) []byte { return appendTime(dst, int64(a.Value(row)), per) }
	case *array.Time64:
		per := perSecond(a.DataType().(*arrow.Time64Type).Unit)
		return func(dst []byte, row int) []byte { return appendTime(dst, int64(a.Value(row)), per) }
	case *array.Timestamp:
		t := a.DataType().(*arrow.TimestampType)
		per, zoned := perSecond(t.Unit), t.TimeZone != ""
		return func(dst []byte, row int) []byte { return appendTimestamp(dst, int64(a.Value(row)), per, zoned) }
	case *array.Duration:
		per := perSecond(a.DataType().(*arrow.DurationType).Unit)
		return func(dst []byte, row int) []byte { return appendSeconds(append(dst, "PT"...), int64(a.Value(row)), per) }
	}
	return intervalAppender(arr)
}

func intervalAppender(arr arrow.Array) appender {
	switch a := arr.(type) {
	case *array.MonthInterval:
		return func(dst []byte, row int) []byte { return appendInterval(dst, int32(a.Value(row)), 0, 0) }
	case *array.DayTimeInterval:
		return func(dst []byte, row int) []byte {
			v := a.Value(row)
			return appendInterval(dst, 0, v.Days, int64(v.Milliseconds)*1e6)
		}
	case *array.MonthDayNanoInterval:
		return func(dst []byte, row int) []byte {
			v := a.Value(row)
			return appendInterval(dst, v.Months, v.Days, v.Nanoseconds)
		}
	}
	return nil
}

func perSecond(u arrow.TimeUnit) int64 {
	switch u {
	case arrow.Second:
		return 1
	case arrow.Millisecond:
		return 1e3
	case arrow.Microsecond:
		return 1e6
	}
	return 1e9
}

// floorDiv divides towards minus infinity.
func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// maxSeconds is what time.Time can surely hold, about 29 million years either way.
const maxSeconds = math.MaxInt64 / 10000

// appendDate writes the date of an instant given in seconds since 1970.
func appendDate(dst []byte, seconds int64) []byte {
	if seconds > maxSeconds || seconds < -maxSeconds {
		return append(strconv.AppendInt(dst, seconds, 10), 's')
	}
	year, month, day := time.Unix(seconds, 0).UTC().Date()
	if year < 0 {
		dst, year = append(dst, '-'), -year
	}
	dst = appendPadded(dst, int64(year), 4)
	dst = appendPadded(append(dst, '-'), int64(month), 2)
	return appendPadded(append(dst, '-'), int64(day), 2)
}

// appendTime writes a time of the day; 24:00:00 is one.
func appendTime(dst []byte, v, per int64) []byte {
	seconds := floorDiv(v, per)
	if seconds < 0 {
		dst = append(dst, '-')
		return appendTime(dst, -v, per)
	}
	dst = appendPadded(dst, seconds/3600, 2)
	dst = appendPadded(append(dst, ':'), seconds/60%60, 2)
	dst = appendPadded(append(dst, ':'), seconds%60, 2)
	return appendFraction(dst, v-seconds*per, per)
}

func appendTimestamp(dst []byte, v, per int64, zoned bool) []byte {
	seconds := floorDiv(v, per)
	dst = appendDate(dst, seconds)
	if seconds <= maxSeconds && seconds >= -maxSeconds {
		day := floorDiv(seconds, 86400)
		dst = appendTime(append(dst, 'T'), (seconds-day*86400)*per+v-seconds*per, per)
	}
	if zoned {
		dst = append(dst, 'Z')
	}
	return dst
}

// appendInterval writes the parts that are not zero, and PT0S if all are.
func appendInterval(dst []byte, months, days int32, nanos int64) []byte {
	dst = append(dst, 'P')
	if months != 0 {
		dst = append(strconv.AppendInt(dst, int64(months), 10), 'M')
	}
	if days != 0 {
		dst = append(strconv.AppendInt(dst, int64(days), 10), 'D')
	}
	if nanos != 0 || months == 0 && days == 0 {
		dst = appendSeconds(append(dst, 'T'), nanos, 1e9)
	}
	return dst
}

// appendSeconds writes a number of seconds given in parts of a second.
func appendSeconds(dst []byte, v, per int64) []byte {
	magnitude := uint64(v)
	if v < 0 {
		dst, magnitude = append(dst, '-'), -magnitude
	}
	dst = strconv.AppendUint(dst, magnitude/uint64(per), 10)
	return append(appendFraction(dst, int64(magnitude%uint64(per)), per), 'S')
}

// appendFraction writes part/per without trailing zeros, nothing for 0.
func appendFraction(dst []byte, part, per int64) []byte {
	if part == 0 {
		return dst
	}
	dst = append(dst, '.')
	for per /= 10; part != 0; per /= 10 {
		dst = append(dst, byte('0'+part/per))
		part %= per
	}
	return dst
}

// appendPadded writes v with at least width digits.
func appendPadded(dst []byte, v int64, width int) []byte {
	limit := int64(1)
	for ; width > 1; width-- {
		limit *= 10
	}
	for ; v < limit && limit > 1; limit /= 10 {
		dst = append(dst, '0')
	}
	return strconv.AppendInt(dst, v, 10)
}
