package postgres

import (
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
)

const oidUUID = 2950

// encodeParam gives a value as Bind takes it: as text, which the server converts to
// whatever type it found for the parameter, or raw where bytes are wanted.
func encodeParam(arr arrow.Array, i int, oid uint32) (v []byte, format int16, err error) {
	if arr.DataType().ID() == arrow.NULL || arr.IsNull(i) {
		return nil, formatText, nil
	}
	if b, ok := bytesOf(arr, i); ok && (oid == oidBytea || oid == oidUUID && len(b) == 16) {
		if b == nil {
			b = []byte{}
		}
		return b, formatBinary, nil
	}
	s, err := paramText(arr, i, oid)
	return []byte(s), formatText, err
}

// bytesOf returns the bytes of a value of a binary type.
func bytesOf(arr arrow.Array, i int) ([]byte, bool) {
	switch a := arr.(type) {
	case *array.Binary:
		return a.Value(i), true
	case *array.LargeBinary:
		return a.Value(i), true
	case *array.BinaryView:
		return a.Value(i), true
	case *array.FixedSizeBinary:
		return a.Value(i), true
	case array.ExtensionArray:
		return bytesOf(a.Storage(), i)
	}
	return nil, false
}

// paramText writes a value as PostgreSQL reads it.
func paramText(arr arrow.Array, i int, oid uint32) (string, error) {
	if b, ok := bytesOf(arr, i); ok {
		return `\x` + hex.EncodeToString(b), nil
	}
	switch a := arr.(type) {
	case *array.Boolean:
		return strconv.FormatBool(a.Value(i)), nil
	case *array.String:
		return a.Value(i), nil
	case *array.LargeString:
		return a.Value(i), nil
	case *array.StringView:
		return a.Value(i), nil
	case *array.Decimal128:
		return a.Value(i).ToString(a.DataType().(arrow.DecimalType).GetScale()), nil
	case *array.Decimal256:
		return a.Value(i).ToString(a.DataType().(arrow.DecimalType).GetScale()), nil
	case *array.Decimal32, *array.Decimal64:
		return arr.ValueStr(i), nil
	case *array.Dictionary:
		return paramText(a.Dictionary(), a.GetValueIndex(i), oid)
	case array.ExtensionArray:
		return paramText(a.Storage(), i, oid)
	case array.ListLike:
		return listText(a, i, oid)
	}
	if s, ok := numberText(arr, i); ok {
		return s, nil
	}
	if s, ok := timeText(arr, i, oid); ok {
		return s, nil
	}
	return "", fmt.Errorf("PostgreSQL has no counterpart for values of the Arrow type %s", arr.DataType())
}

func numberText(arr arrow.Array, i int) (string, bool) {
	switch a := arr.(type) {
	case *array.Int8:
		return strconv.FormatInt(int64(a.Value(i)), 10), true
	case *array.Int16:
		return strconv.FormatInt(int64(a.Value(i)), 10), true
	case *array.Int32:
		return strconv.FormatInt(int64(a.Value(i)), 10), true
	case *array.Int64:
		return strconv.FormatInt(a.Value(i), 10), true
	case *array.Uint8:
		return strconv.FormatUint(uint64(a.Value(i)), 10), true
	case *array.Uint16:
		return strconv.FormatUint(uint64(a.Value(i)), 10), true
	case *array.Uint32:
		return strconv.FormatUint(uint64(a.Value(i)), 10), true
	case *array.Uint64:
		return strconv.FormatUint(a.Value(i), 10), true
	case *array.Float16:
		return floatText(float64(a.Value(i).Float32()), 32), true
	case *array.Float32:
		return floatText(float64(a.Value(i)), 32), true
	case *array.Float64:
		return floatText(a.Value(i), 64), true
	}
	return "", false
}

func floatText(f float64, bits int) string {
	switch {
	case math.IsInf(f, 1):
		return "Infinity"
	case math.IsInf(f, -1):
		return "-Infinity"
	}
	return strconv.FormatFloat(f, 'g', -1, bits)
}

func timeText(arr arrow.Array, i int, oid uint32) (string, bool) {
	switch a := arr.(type) {
	case *array.Date32:
		return momentText(time.Unix(int64(a.Value(i))*86400, 0), time.DateOnly[4:], ""), true
	case *array.Date64:
		return momentText(time.UnixMilli(int64(a.Value(i))), time.DateOnly[4:], ""), true
	case *array.Time32:
		return a.Value(i).ToTime(a.DataType().(*arrow.Time32Type).Unit).Format("15:04:05.999"), true
	case *array.Time64:
		return a.Value(i).ToTime(a.DataType().(*arrow.Time64Type).Unit).Format("15:04:05.999999999"), true
	case *array.Timestamp:
		dt, zone := a.DataType().(*arrow.TimestampType), ""
		if dt.TimeZone != "" || oid == oidTimestamptz {
			zone = "+00" // Arrow counts in UTC whatever the zone's name
		}
		return momentText(moment(int64(a.Value(i)), dt.Unit), "-01-02 15:04:05.999999999", zone), true
	case *array.MonthDayNanoInterval:
		v := a.Value(i)
		return intervalText(int64(v.Months), int64(v.Days), v.Nanoseconds), true
	case *array.DayTimeInterval:
		v := a.Value(i)
		return intervalText(0, int64(v.Days), int64(v.Milliseconds)*1e6), true
	case *array.MonthInterval:
		return intervalText(int64(a.Value(i)), 0, 0), true
	case *array.Duration:
		return durationText(int64(a.Value(i)), a.DataType().(*arrow.DurationType).Unit), true
	}
	return "", false
}

// moment splits into seconds first: not every timestamp fits 64 bits of nanoseconds.
func moment(v int64, unit arrow.TimeUnit) time.Time {
	per := int64(time.Second / unit.Multiplier())
	sec, rest := v/per, v%per
	return time.Unix(sec, rest*int64(unit.Multiplier()))
}

// momentText writes the year by itself, since PostgreSQL wants years before 1 as BC.
// layout follows the year.
func momentText(t time.Time, layout, zone string) string {
	t = t.UTC()
	year, era := t.Year(), ""
	if year < 1 {
		year, era = 1-year, " BC"
	}
	return fmt.Sprintf("%04d", year) + t.Format(layout) + zone + era
}

func intervalText(months, days, nanos int64) string {
	return fmt.Sprintf("%d mons %d days %s secs", months, days, secondsText(nanos/1e9, nanos%1e9))
}

func durationText(v int64, unit arrow.TimeUnit) string {
	per := int64(time.Second / unit.Multiplier())
	return secondsText(v/per, v%per*int64(unit.Multiplier())) + " secs"
}

// secondsText joins seconds and nanoseconds of the same sign.
func secondsText(sec, nanos int64) string {
	sign := ""
	if sec < 0 || nanos < 0 {
		sign = "-"
	}
	return fmt.Sprintf("%s%d.%09d", sign, magnitude(sec), magnitude(nanos))
}

func magnitude(v int64) uint64 {
	if v < 0 {
		return uint64(-(v + 1)) + 1
	}
	return uint64(v)
}

// listText writes an array literal. Every element is quoted, which no type minds.
func listText(a array.ListLike, i int, oid uint32) (string, error) {
	start, end := a.ValueOffsets(i)
	var b strings.Builder
	b.WriteByte('{')
	for j := int(start); j < int(end); j++ {
		if j > int(start) {
			b.WriteByte(',')
		}
		values := a.ListValues()
		if values.IsNull(j) {
			b.WriteString("NULL")
			continue
		}
		s, err := paramText(values, j, builtinArrays[oid])
		if err != nil {
			return "", err
		}
		if _, nested := values.(array.ListLike); nested {
			b.WriteString(s)
			continue
		}
		b.WriteString(`"` + literalEscape.Replace(s) + `"`)
	}
	b.WriteByte('}')
	return b.String(), nil
}

var literalEscape = strings.NewReplacer(`\`, `\\`, `"`, `\"`)
