package format

import (
	"encoding/base64"
	"fmt"
	"math"
	"strconv"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/extensions"
)

// What becomes of a value. "Text" is the form in CSV cells, tables and, for types that
// Parquet lacks, Parquet columns; JSON puts it in quotes unless the table says otherwise.
//
//	integers           all digits; JSON: a number, exact, also beyond 2^53
//	floats             the shortest text that reads back equal; JSON: a number;
//	                   NaN, Infinity, -Infinity; JSON: strings
//	decimals           exact, with every digit of the scale; JSON: a string
//	booleans           true, false
//	text               as it is; JSON: bytes that are not UTF-8 become U+FFFD
//	binary             base64 with padding
//	dates              2026-01-31; years beyond 9999 have more digits, before 0 a minus
//	times              15:04:05.999999, fraction only where there is one
//	timestamps         RFC 3339; with a time zone: the instant in UTC, ending in Z;
//	                   without one: no offset
//	durations          ISO 8601 in seconds: PT90.5S
//	intervals          ISO 8601, each part with its own sign: P1M-2DT3.5S
//	UUIDs              xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx
//	JSON documents     their text; JSON: a string that holds it
//	lists              JSON arrays; structs JSON objects; maps arrays of [key, value]
//	dictionaries, run-end encodings, unions, extensions: what they stand for

// appender writes the value of one row.
type appender func(dst []byte, row int) []byte

// column writes the values of one array. null tells which rows have none; they must
// not be asked for.
type column struct {
	null func(row int) bool
	text appender
	json appender
}

// newColumn finds the writers for an array, which must outlive them.
func newColumn(arr arrow.Array) column {
	if c, ok := wrapperColumn(arr); ok {
		return c
	}
	c := column{null: arr.IsNull}
	if json := nestedAppender(arr); json != nil {
		c.text, c.json = json, json
		return c
	}
	if str := stringAt(arr); str != nil {
		c.text = func(dst []byte, row int) []byte { return append(dst, str(row)...) }
		c.json = func(dst []byte, row int) []byte { return appendJSONString(dst, str(row)) }
		return c
	}
	if bare := bareAppender(arr); bare != nil {
		c.text, c.json = bare, bare
		return c
	}
	if float := floatAt(arr); float != nil {
		c.text = func(dst []byte, row int) []byte { return appendFloat(dst, float(row), floatBits(arr)) }
		c.json = func(dst []byte, row int) []byte { return appendJSONFloat(dst, float(row), floatBits(arr)) }
		return c
	}
	c.text = quotedAppender(arr)
	c.json = func(dst []byte, row int) []byte {
		dst = append(dst, '"')
		dst = c.text(dst, row)
		return append(dst, '"')
	}
	return c
}

// jsonValue writes a value or null.
func (c column) jsonValue(dst []byte, row int) []byte {
	if c.null(row) {
		return append(dst, "null"...)
	}
	return c.json(dst, row)
}

// wrapperColumn handles arrays whose values stand in another array.
func wrapperColumn(arr arrow.Array) (column, bool) {
	switch a := arr.(type) {
	case *array.Null:
		return column{null: func(int) bool { return true }}, true
	case *extensions.UUIDArray:
		return uuidColumn(a), true
	case array.ExtensionArray:
		return newColumn(a.Storage()), true
	case *array.Dictionary:
		return redirect(a.Dictionary(), a.IsNull, a.GetValueIndex), true
	case *array.RunEndEncoded:
		return redirect(a.Values(), func(int) bool { return false }, a.GetPhysicalIndex), true
	case array.Union:
		return unionColumn(a), true
	}
	return column{}, false
}

// redirect reads another array through an index.
func redirect(values arrow.Array, null func(int) bool, index func(int) int) column {
	inner := newColumn(values)
	return column{
		null: func(row int) bool { return null(row) || inner.null(index(row)) },
		text: func(dst []byte, row int) []byte { return inner.text(dst, index(row)) },
		json: func(dst []byte, row int) []byte { return inner.json(dst, index(row)) },
	}
}

func uuidColumn(a *extensions.UUIDArray) column {
	text := func(dst []byte, row int) []byte { return append(dst, a.Value(row).String()...) }
	return column{
		null: a.IsNull,
		text: text,
		json: func(dst []byte, row int) []byte { return append(text(append(dst, '"'), row), '"') },
	}
}

// unionColumn reads whichever child a row points to.
func unionColumn(a array.Union) column {
	children := make([]column, a.NumFields())
	for i := range children {
		children[i] = newColumn(a.Field(i))
	}
	at := func(row int) (column, int) {
		if dense, ok := a.(*array.DenseUnion); ok {
			return children[a.ChildID(row)], int(dense.ValueOffset(row))
		}
		return children[a.ChildID(row)], row + a.Data().Offset()
	}
	return column{
		null: func(row int) bool { c, i := at(row); return c.null(i) },
		text: func(dst []byte, row int) []byte { c, i := at(row); return c.text(dst, i) },
		json: func(dst []byte, row int) []byte { c, i := at(row); return c.json(dst, i) },
	}
}

// stringAt reads text arrays.
func stringAt(arr arrow.Array) func(int) string {
	switch a := arr.(type) {
	case *array.String:
		return a.Value
	case *array.LargeString:
		return a.Value
	case *array.StringView:
		return a.Value
	}
	return nil
}

// bareAppender writes what JSON takes without quotes in any case.
func bareAppender(arr arrow.Array) appender {
	switch a := arr.(type) {
	case *array.Boolean:
		return func(dst []byte, row int) []byte { return strconv.AppendBool(dst, a.Value(row)) }
	case *array.Int8:
		return signed(a.Value)
	case *array.Int16:
		return signed(a.Value)
	case *array.Int32:
		return signed(a.Value)
	case *array.Int64:
		return signed(a.Value)
	case *array.Uint8:
		return unsigned(a.Value)
	case *array.Uint16:
		return unsigned(a.Value)
	case *array.Uint32:
		return unsigned(a.Value)
	case *array.Uint64:
		return unsigned(a.Value)
	}
	return nil
}

func signed[T int8 | int16 | int32 | int64](at func(int) T) appender {
	return func(dst []byte, row int) []byte { return strconv.AppendInt(dst, int64(at(row)), 10) }
}

func unsigned[T uint8 | uint16 | uint32 | uint64](at func(int) T) appender {
	return func(dst []byte, row int) []byte { return strconv.AppendUint(dst, uint64(at(row)), 10) }
}

// floatAt reads arrays of floating-point numbers.
func floatAt(arr arrow.Array) func(int) float64 {
	switch a := arr.(type) {
	case *array.Float16:
		return func(row int) float64 { return float64(a.Value(row).Float32()) }
	case *array.Float32:
		return func(row int) float64 { return float64(a.Value(row)) }
	case *array.Float64:
		return a.Value
	}
	return nil
}

func floatBits(arr arrow.Array) int {
	if arr.DataType().ID() == arrow.FLOAT64 {
		return 64
	}
	return 32
}

func appendFloat(dst []byte, v float64, bits int) []byte {
	switch {
	case math.IsNaN(v):
		return append(dst, "NaN"...)
	case math.IsInf(v, 1):
		return append(dst, "Infinity"...)
	case math.IsInf(v, -1):
		return append(dst, "-Infinity"...)
	}
	form := byte('f')
	if abs := math.Abs(v); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		form = 'e'
	}
	return strconv.AppendFloat(dst, v, form, -1, bits)
}

func appendJSONFloat(dst []byte, v float64, bits int) []byte {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return append(appendFloat(append(dst, '"'), v, bits), '"')
	}
	return appendFloat(dst, v, bits)
}

// quotedAppender writes the scalars that JSON takes as a string, in plain ASCII.
func quotedAppender(arr arrow.Array) appender {
	if bytes := bytesAt(arr); bytes != nil {
		return func(dst []byte, row int) []byte { return base64.StdEncoding.AppendEncode(dst, bytes(row)) }
	}
	if decimal := decimalAppender(arr); decimal != nil {
		return decimal
	}
	if temporal := temporalAppender(arr); temporal != nil {
		return temporal
	}
	// A type that a later version of Arrow adds: its library's own text, made safe.
	return func(dst []byte, row int) []byte {
		quoted := appendJSONString(nil, arr.ValueStr(row))
		return append(dst, quoted[1:len(quoted)-1]...)
	}
}

func bytesAt(arr arrow.Array) func(int) []byte {
	switch a := arr.(type) {
	case *array.Binary:
		return a.Value
	case *array.LargeBinary:
		return a.Value
	case *array.BinaryView:
		return a.Value
	case *array.FixedSizeBinary:
		return a.Value
	}
	return nil
}

// isNumber says whether a type reads as a number, and so stands right in a table.
func isNumber(t arrow.DataType) bool {
	switch t := t.(type) {
	case *arrow.DictionaryType:
		return isNumber(t.ValueType)
	case arrow.ExtensionType:
		return isNumber(t.StorageType())
	}
	return arrow.IsInteger(t.ID()) || arrow.IsFloating(t.ID()) || arrow.IsDecimal(t.ID())
}

const hexDigits = "0123456789abcdef"

// appendJSONString writes s as a JSON string.
func appendJSONString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c < 0x80 {
			continue
		}
		if c >= 0x80 {
			if n := validRune(s[i:]); n > 0 {
				i += n - 1
				continue
			}
		}
		dst = append(dst, s[start:i]...)
		dst = appendEscaped(dst, c)
		start = i + 1
	}
	return append(append(dst, s[start:]...), '"')
}

// appendEscaped writes a byte that can't stand in a JSON string as it is.
func appendEscaped(dst []byte, c byte) []byte {
	switch {
	case c == '"' || c == '\\':
		return append(dst, '\\', c)
	case c == '\n':
		return append(dst, '\\', 'n')
	case c == '\r':
		return append(dst, '\\', 'r')
	case c == '\t':
		return append(dst, '\\', 't')
	case c >= 0x80:
		return append(dst, `\ufffd`...)
	}
	return append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
}

// typeName is how a result's description names a column's type.
func typeName(t arrow.DataType) string {
	if ext, ok := t.(arrow.ExtensionType); ok {
		return ext.ExtensionName()
	}
	return fmt.Sprint(t)
}
