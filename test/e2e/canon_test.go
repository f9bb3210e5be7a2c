package e2e

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
)

// canon compares values of one type. Both sides are brought into the form that
// docs/types.md gives the type in JSON: a string, a json.Number, a bool or a list of
// these. What comes through the gateway is compared as it is; only floats are read and
// written again, since psql and Sluice choose between 1e21 and 1000000000000000000000
// differently.
type canon struct {
	// psql turns what psql prints into the documented form.
	psql func(text string) (any, error)
	// bits of a float, 0 for all other types.
	bits int
	// elem is the element of a list, nil for all other types.
	elem *canon
}

var (
	canonText     = canon{psql: func(s string) (any, error) { return s, nil }}
	canonNumber   = canon{psql: func(s string) (any, error) { return json.Number(s), nil }}
	canonBool     = canon{psql: func(s string) (any, error) { return s == "t", nil }}
	canonFloat32  = canon{psql: func(s string) (any, error) { return s, nil }, bits: 32}
	canonFloat64  = canon{psql: func(s string) (any, error) { return s, nil }, bits: 64}
	canonBytes    = canon{psql: bytesFromPSQL}
	canonTime     = canon{psql: timeFromPSQL}
	canonInterval = canon{psql: intervalFromPSQL}
)

func canonList(elem canon) canon { return canon{elem: &elem} }

// fromPSQL brings what psql printed into the documented form.
func (c canon) fromPSQL(t *testing.T, text string) any {
	t.Helper()
	if c.elem != nil {
		list := []any{}
		for _, e := range splitArray(t, text) {
			if e == nil {
				list = append(list, nil)
			} else {
				list = append(list, c.elem.fromPSQL(t, *e))
			}
		}
		return list
	}
	v, err := c.psql(text)
	if err != nil {
		t.Fatalf("what psql printed can't be read: %q: %v", text, err)
	}
	return c.tidy(v)
}

// tidy brings floats into one form and leaves the rest alone.
func (c canon) tidy(v any) any {
	if list, ok := v.([]any); ok && c.elem != nil {
		for i := range list {
			list[i] = c.elem.tidy(list[i])
		}
		return list
	}
	if c.bits == 0 || v == nil {
		return v
	}
	f, err := strconv.ParseFloat(fmt.Sprint(v), c.bits)
	if err != nil {
		return fmt.Sprintf("not a float: %v", v)
	}
	return "float " + strconv.FormatFloat(f, 'g', -1, c.bits)
}

// fromCell reads a cell of a CSV result: lists are JSON there, all else is its text.
func (c canon) fromCell(cell csvCell) any {
	if cell.text == "" && !cell.quoted {
		return nil
	}
	if c.elem != nil {
		v, err := decodeJSON(cell.text)
		if err != nil {
			return fmt.Sprintf("not JSON: %s", cell.text)
		}
		return c.tidy(v)
	}
	sample, _ := c.psql("0")
	switch sample.(type) {
	case json.Number:
		return json.Number(cell.text)
	case bool:
		if cell.text == "true" || cell.text == "false" {
			return cell.text == "true"
		}
	}
	return c.tidy(cell.text)
}

func bytesFromPSQL(s string) (any, error) {
	digits, ok := strings.CutPrefix(s, `\x`)
	if !ok {
		if s == "0" {
			return "", nil
		}
		return nil, fmt.Errorf("no \\x")
	}
	raw, err := hex.DecodeString(digits)
	return base64.StdEncoding.EncodeToString(raw), err
}

// timeFromPSQL turns "0044-03-15 01:02:03+00 BC" into "-0043-03-15T01:02:03Z".
func timeFromPSQL(s string) (any, error) {
	s, bc := strings.CutSuffix(s, " BC")
	if bc {
		year, rest, _ := strings.Cut(s, "-")
		n, err := strconv.Atoi(year)
		if err != nil {
			return nil, err
		}
		s = fmt.Sprintf("-%04d-%s", n-1, rest)
	}
	if day, clock, ok := strings.Cut(s, " "); ok {
		if zoned, ok := strings.CutSuffix(clock, "+00"); ok {
			clock = zoned + "Z"
		}
		s = day + "T" + clock
	}
	return s, nil
}

var isoInterval = regexp.MustCompile(`^P(?:(-?\d+)Y)?(?:(-?\d+)M)?(?:(-?\d+)D)?(?:T(?:(-?\d+)H)?(?:(-?\d+)M)?(?:(-?\d+(?:\.\d+)?|-?\.\d+)S)?)?$`)

// intervalFromPSQL turns P1Y2M3DT4H5M6.7S into months, days and seconds: P14M3DT14706.7S.
func intervalFromPSQL(s string) (any, error) {
	if s == "0" {
		s = "PT0S"
	}
	m := isoInterval.FindStringSubmatch(s)
	if m == nil {
		return nil, fmt.Errorf("not an ISO 8601 interval")
	}
	n := func(i int) int64 { v, _ := strconv.ParseInt(m[i], 10, 64); return v }
	micros := new(big.Rat)
	if m[6] != "" {
		micros.SetString(m[6])
	}
	micros.Add(micros, new(big.Rat).SetInt64(n(4)*3600+n(5)*60))
	micros.Mul(micros, big.NewRat(1_000_000, 1))
	return intervalText(n(1)*12+n(2), n(3), micros.Num().Int64()), nil
}

// intervalText is the documented form of an interval.
func intervalText(months, days, micros int64) string {
	out := "P"
	if months != 0 {
		out += fmt.Sprintf("%dM", months)
	}
	if days != 0 {
		out += fmt.Sprintf("%dD", days)
	}
	if micros == 0 && out != "P" {
		return out
	}
	return out + "T" + strings.TrimSuffix(strings.TrimRight(big.NewRat(micros, 1_000_000).FloatString(6), "0"), ".") + "S"
}

// splitArray takes PostgreSQL's text of an array of one dimension apart; nil is null.
func splitArray(t *testing.T, text string) []*string {
	t.Helper()
	body, ok := strings.CutPrefix(text, "{")
	if !ok || !strings.HasSuffix(body, "}") {
		t.Fatalf("not an array: %q", text)
	}
	body = strings.TrimSuffix(body, "}")
	var out []*string
	for len(body) > 0 {
		var elem string
		quoted := body[0] == '"'
		if quoted {
			for body = body[1:]; body[0] != '"'; body = body[1:] {
				if body[0] == '\\' {
					body = body[1:]
				}
				elem += body[:1]
			}
			body = body[1:]
		} else {
			elem, _, _ = strings.Cut(body, ",")
			body = body[len(elem):]
		}
		if !quoted && elem == "NULL" {
			out = append(out, nil)
		} else {
			out = append(out, &elem)
		}
		body = strings.TrimPrefix(body, ",")
	}
	return out
}

// arrowValue reads one value out of an Arrow array, in the documented form, without the
// product's own code.
func arrowValue(t *testing.T, arr arrow.Array, row int) any {
	t.Helper()
	if arr.IsNull(row) {
		return nil
	}
	switch a := arr.(type) {
	case *array.Boolean:
		return a.Value(row)
	case *array.Int16, *array.Int32, *array.Int64, *array.Uint32:
		return json.Number(a.ValueStr(row))
	case *array.Float32:
		return fmt.Sprint(a.Value(row))
	case *array.Float64:
		return fmt.Sprint(a.Value(row))
	case *array.Decimal128:
		return decimalText(a.Value(row).BigInt(), a.DataType().(*arrow.Decimal128Type).Scale)
	case *array.Decimal256:
		return decimalText(a.Value(row).BigInt(), a.DataType().(*arrow.Decimal256Type).Scale)
	case *array.String:
		return a.Value(row)
	case *array.Binary:
		return base64.StdEncoding.EncodeToString(a.Value(row))
	case *array.Date32:
		return time.Unix(int64(a.Value(row))*86400, 0).UTC().Format("2006-01-02")
	case *array.Time64:
		return time.UnixMicro(int64(a.Value(row))).UTC().Format("15:04:05.999999")
	case *array.Timestamp:
		text := time.UnixMicro(int64(a.Value(row))).UTC().Format("2006-01-02T15:04:05.999999")
		if a.DataType().(*arrow.TimestampType).TimeZone != "" {
			text += "Z"
		}
		return text
	case *array.MonthDayNanoInterval:
		v := a.Value(row)
		return intervalText(int64(v.Months), int64(v.Days), v.Nanoseconds/1000)
	case *array.List:
		list := []any{}
		start, end := a.ValueOffsets(row)
		for i := start; i < end; i++ {
			list = append(list, arrowValue(t, a.ListValues(), int(i)))
		}
		return list
	}
	t.Fatalf("no test reads arrays of %s", arr.DataType())
	return nil
}

func decimalText(unscaled *big.Int, scale int32) string {
	one := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(scale)), nil)
	return new(big.Rat).SetFrac(unscaled, one).FloatString(int(scale))
}
