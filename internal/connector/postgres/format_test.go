package postgres

import (
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/sluice-gateway/sluice/internal/testpg"
)

// formatRows writes Arrow values as PostgreSQL writes them as text, independently of
// the package's own encoding of parameters.
func formatRows(t testing.TB, schema *arrow.Schema, recs []arrow.RecordBatch) [][]string {
	t.Helper()
	var rows [][]string
	for _, rec := range recs {
		for i := range int(rec.NumRows()) {
			var row []string
			for c := range int(rec.NumCols()) {
				if rec.Column(c).IsNull(i) {
					row = append(row, testpg.Null)
					continue
				}
				row = append(row, formatValue(t, rec.Column(c), i))
			}
			rows = append(rows, row)
		}
	}
	return rows
}

func formatValue(t testing.TB, arr arrow.Array, i int) string {
	switch a := arr.(type) {
	case *array.Boolean:
		if a.Value(i) {
			return "t"
		}
		return "f"
	case *array.Int16, *array.Int32, *array.Int64, *array.Uint32:
		return arr.ValueStr(i)
	case *array.Float32:
		return formatFloat(float64(a.Value(i)), 32)
	case *array.Float64:
		return formatFloat(a.Value(i), 64)
	case *array.Decimal128:
		return a.Value(i).ToString(a.DataType().(*arrow.Decimal128Type).Scale)
	case *array.Decimal256:
		return a.Value(i).ToString(a.DataType().(*arrow.Decimal256Type).Scale)
	case *array.String:
		return a.Value(i)
	case *array.Binary:
		return `\x` + hex.EncodeToString(a.Value(i))
	case *array.Date32:
		return formatDay(int64(a.Value(i)), "")
	case *array.Time64:
		return formatClock(int64(a.Value(i)))
	case *array.Timestamp:
		us := int64(a.Value(i))
		day, rest := us/86_400_000_000, us%86_400_000_000
		if rest < 0 {
			day, rest = day-1, rest+86_400_000_000
		}
		zone := ""
		if a.DataType().(*arrow.TimestampType).TimeZone != "" {
			zone = "+00"
		}
		return formatDay(day, " "+formatClock(rest)+zone)
	case *array.MonthDayNanoInterval:
		return formatInterval(a.Value(i))
	case *array.List:
		return formatList(t, a, i)
	}
	t.Fatalf("no format for %T", arr)
	return ""
}

// formatFloat is the shortest form, in PostgreSQL's choice of exponents.
func formatFloat(f float64, bits int) string {
	switch {
	case math.IsNaN(f):
		return "NaN"
	case math.IsInf(f, 1):
		return "Infinity"
	case math.IsInf(f, -1):
		return "-Infinity"
	}
	digits := 15
	if bits == 32 {
		digits = 6
	}
	if a := math.Abs(f); a != 0 && (a < 1e-4 || a >= math.Pow10(digits)) {
		return strconv.FormatFloat(f, 'e', -1, bits)
	}
	return strconv.FormatFloat(f, 'f', -1, bits)
}

func formatDay(day int64, clock string) string {
	d := time.Unix(day*86400, 0).UTC()
	if d.Year() < 1 {
		return fmt.Sprintf("%04d-%02d-%02d%s BC", 1-d.Year(), d.Month(), d.Day(), clock)
	}
	return fmt.Sprintf("%04d-%02d-%02d%s", d.Year(), d.Month(), d.Day(), clock)
}

func formatClock(us int64) string {
	s := fmt.Sprintf("%02d:%02d:%02d", us/3_600_000_000, us/60_000_000%60, us/1_000_000%60)
	if f := us % 1_000_000; f != 0 {
		s += strings.TrimRight(fmt.Sprintf(".%06d", f), "0")
	}
	return s
}

// formatInterval follows IntervalStyle postgres.
func formatInterval(v arrow.MonthDayNanoInterval) string {
	var parts []string
	negative := false
	add := func(n int64, unit string) {
		if n == 0 {
			return
		}
		sign := ""
		if negative && n > 0 {
			sign = "+"
		}
		if n != 1 {
			unit += "s"
		}
		parts = append(parts, fmt.Sprintf("%s%d %s", sign, n, unit))
		negative = n < 0
	}
	add(int64(v.Months/12), "year")
	add(int64(v.Months%12), "mon")
	add(int64(v.Days), "day")
	if us := v.Nanoseconds / 1000; us != 0 || len(parts) == 0 {
		sign := ""
		if us < 0 {
			sign, us = "-", -us
		} else if negative {
			sign = "+"
		}
		parts = append(parts, sign+formatClock(us))
	}
	return strings.Join(parts, " ")
}

func formatList(t testing.TB, a *array.List, i int) string {
	start, end := a.ValueOffsets(i)
	var elems []string
	for j := int(start); j < int(end); j++ {
		if a.ListValues().IsNull(j) {
			elems = append(elems, "NULL")
			continue
		}
		elems = append(elems, quoteElement(formatValue(t, a.ListValues(), j)))
	}
	return "{" + strings.Join(elems, ",") + "}"
}

func quoteElement(s string) string {
	if s == "" || strings.EqualFold(s, "null") || strings.ContainsAny(s, "{}\",\\ \t\n\r\v\f") {
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
	}
	return s
}
