package postgres

import (
	"encoding/binary"
	"math"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/arrow/decimal256"
)

// Days and microseconds from Arrow's epoch, 1970-01-01, to PostgreSQL's, 2000-01-01.
const (
	epochDays   = 10957
	epochMicros = epochDays * 86_400_000_000
	dayMicros   = 86_400_000_000
)

func readInt16(v []byte) (int16, error) {
	if len(v) != 2 {
		return 0, malformed("int2", v)
	}
	return int16(binary.BigEndian.Uint16(v)), nil
}

func readInt32(v []byte) (int32, error) {
	if len(v) != 4 {
		return 0, malformed("int4", v)
	}
	return int32(binary.BigEndian.Uint32(v)), nil
}

func readInt64(v []byte) (int64, error) {
	if len(v) != 8 {
		return 0, malformed("int8", v)
	}
	return int64(binary.BigEndian.Uint64(v)), nil
}

func readUint32(v []byte) (uint32, error) {
	if len(v) != 4 {
		return 0, malformed("oid", v)
	}
	return binary.BigEndian.Uint32(v), nil
}

func readFloat32(v []byte) (float32, error) {
	if len(v) != 4 {
		return 0, malformed("float4", v)
	}
	return math.Float32frombits(binary.BigEndian.Uint32(v)), nil
}

func readFloat64(v []byte) (float64, error) {
	if len(v) != 8 {
		return 0, malformed("float8", v)
	}
	return math.Float64frombits(binary.BigEndian.Uint64(v)), nil
}

func readDate(v []byte) (arrow.Date32, error) {
	days, err := readInt32(v)
	if err != nil {
		return 0, malformed("date", v)
	}
	switch {
	case days == math.MaxInt32:
		return 0, &misfit{"infinity"}
	case days == math.MinInt32:
		return 0, &misfit{"-infinity"}
	case days > math.MaxInt32-epochDays:
		return 0, malformed("date", v)
	}
	return arrow.Date32(days + epochDays), nil
}

func readTimestamp(v []byte) (arrow.Timestamp, error) {
	us, err := readInt64(v)
	if err != nil {
		return 0, malformed("timestamp", v)
	}
	switch {
	case us == math.MaxInt64:
		return 0, &misfit{"infinity"}
	case us == math.MinInt64:
		return 0, &misfit{"-infinity"}
	case us > math.MaxInt64-epochMicros:
		return 0, &misfit{"a time after the year 294246"}
	}
	return arrow.Timestamp(us + epochMicros), nil
}

func readTime(v []byte) (arrow.Time64, error) {
	us, err := readInt64(v)
	if err != nil || us < 0 || us > dayMicros {
		return 0, malformed("time", v)
	}
	if us == dayMicros {
		return 0, &misfit{"24:00:00"}
	}
	return arrow.Time64(us), nil
}

func readInterval(v []byte) (arrow.MonthDayNanoInterval, error) {
	if len(v) != 16 {
		return arrow.MonthDayNanoInterval{}, malformed("interval", v)
	}
	us := int64(binary.BigEndian.Uint64(v))
	if us > math.MaxInt64/1000 || us < math.MinInt64/1000 {
		return arrow.MonthDayNanoInterval{}, &misfit{"an interval of more than 292 years of microseconds"}
	}
	return arrow.MonthDayNanoInterval{
		Nanoseconds: us * 1000,
		Days:        int32(binary.BigEndian.Uint32(v[8:])),
		Months:      int32(binary.BigEndian.Uint32(v[12:])),
	}, nil
}

func newFixed[T any](dt arrow.DataType, read func([]byte) (T, error), block blockFunc[T], bytes func([]T) []byte) func() column {
	return func() column {
		return &fixed[T]{dt: dt, read: read, block: block, bytes: bytes, vals: make([]T, 0, minCapacity)}
	}
}

func newDecimal128(precision, scale int32) func() column {
	read := func(v []byte) (decimal128.Num, error) { return readDecimal128(v, precision, scale) }
	return newFixed(&arrow.Decimal128Type{Precision: precision, Scale: scale}, read, blockDecimal128(precision, scale), arrow.Decimal128Traits.CastToBytes)
}

func newDecimal256(precision, scale int32) func() column {
	read := func(v []byte) (decimal256.Num, error) { return readDecimal256(v, precision, scale) }
	return newFixed(&arrow.Decimal256Type{Precision: precision, Scale: scale}, read, nil, arrow.Decimal256Traits.CastToBytes)
}
