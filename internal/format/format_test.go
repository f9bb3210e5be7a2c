package format

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/arrow/decimal256"
	"github.com/apache/arrow-go/v18/arrow/extensions"
	"github.com/apache/arrow-go/v18/arrow/float16"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
)

// value is one value of a type, with what the forms make of it.
type value struct {
	name string
	typ  arrow.DataType
	fill func(array.Builder)
	text string // CSV
	json string // "" if it is the text in quotes
}

var (
	zoned = &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "UTC"}
	local = &arrow.TimestampType{Unit: arrow.Microsecond}
)

func dec128(s string, precision, scale int32) decimal128.Num {
	n, err := decimal128.FromString(s, precision, scale)
	if err != nil {
		panic(err)
	}
	return n
}

// values covers every type and its extremes.
func values() []value {
	someID := uuid.MustParse("0123e456-89ab-4def-8123-456789abcdef")
	return []value{
		{"bool", arrow.FixedWidthTypes.Boolean, func(b array.Builder) { b.(*array.BooleanBuilder).Append(true) }, "true", "true"},
		{"i8", arrow.PrimitiveTypes.Int8, func(b array.Builder) { b.(*array.Int8Builder).Append(-128) }, "-128", "-128"},
		{"i16", arrow.PrimitiveTypes.Int16, func(b array.Builder) { b.(*array.Int16Builder).Append(-32768) }, "-32768", "-32768"},
		{"i32", arrow.PrimitiveTypes.Int32, func(b array.Builder) { b.(*array.Int32Builder).Append(math.MinInt32) }, "-2147483648", "-2147483648"},
		{"i64", arrow.PrimitiveTypes.Int64, func(b array.Builder) { b.(*array.Int64Builder).Append(math.MinInt64) }, "-9223372036854775808", "-9223372036854775808"},
		{"i64 max", arrow.PrimitiveTypes.Int64, func(b array.Builder) { b.(*array.Int64Builder).Append(math.MaxInt64) }, "9223372036854775807", "9223372036854775807"},
		{"u8", arrow.PrimitiveTypes.Uint8, func(b array.Builder) { b.(*array.Uint8Builder).Append(255) }, "255", "255"},
		{"u16", arrow.PrimitiveTypes.Uint16, func(b array.Builder) { b.(*array.Uint16Builder).Append(65535) }, "65535", "65535"},
		{"u32", arrow.PrimitiveTypes.Uint32, func(b array.Builder) { b.(*array.Uint32Builder).Append(math.MaxUint32) }, "4294967295", "4294967295"},
		{"u64", arrow.PrimitiveTypes.Uint64, func(b array.Builder) { b.(*array.Uint64Builder).Append(math.MaxUint64) }, "18446744073709551615", "18446744073709551615"},
		{"f16", arrow.FixedWidthTypes.Float16, func(b array.Builder) { b.(*array.Float16Builder).Append(float16.New(1.5)) }, "1.5", "1.5"},
		{"f32", arrow.PrimitiveTypes.Float32, func(b array.Builder) { b.(*array.Float32Builder).Append(0.1) }, "0.1", "0.1"},
		{"f64", arrow.PrimitiveTypes.Float64, func(b array.Builder) { b.(*array.Float64Builder).Append(1e300) }, "1e+300", "1e+300"},
		{"f64 small", arrow.PrimitiveTypes.Float64, func(b array.Builder) { b.(*array.Float64Builder).Append(5e-324) }, "5e-324", "5e-324"},
		{"nan", arrow.PrimitiveTypes.Float64, func(b array.Builder) { b.(*array.Float64Builder).Append(math.NaN()) }, "NaN", ""},
		{"inf", arrow.PrimitiveTypes.Float64, func(b array.Builder) { b.(*array.Float64Builder).Append(math.Inf(1)) }, "Infinity", ""},
		{"-inf32", arrow.PrimitiveTypes.Float32, func(b array.Builder) { b.(*array.Float32Builder).Append(float32(math.Inf(-1))) }, "-Infinity", ""},
		{"dec", &arrow.Decimal128Type{Precision: 12, Scale: 2}, func(b array.Builder) { b.(*array.Decimal128Builder).Append(dec128("-1234567890.10", 12, 2)) }, "-1234567890.10", ""},
		{"dec small", &arrow.Decimal128Type{Precision: 12, Scale: 4}, func(b array.Builder) { b.(*array.Decimal128Builder).Append(dec128("-0.0001", 12, 4)) }, "-0.0001", ""},
		{"dec zero", &arrow.Decimal128Type{Precision: 12, Scale: 2}, func(b array.Builder) { b.(*array.Decimal128Builder).Append(decimal128.Num{}) }, "0.00", ""},
		{"dec long", &arrow.Decimal128Type{Precision: 38, Scale: 10}, func(b array.Builder) {
			b.(*array.Decimal128Builder).Append(dec128("-9999999999999999999999999999.9999999999", 38, 10))
		}, "-9999999999999999999999999999.9999999999", ""},
		{"dec min64", &arrow.Decimal128Type{Precision: 19, Scale: 0}, func(b array.Builder) {
			b.(*array.Decimal128Builder).Append(dec128("-9223372036854775808", 19, 0))
		}, "-9223372036854775808", ""},
		{"dec neg scale", &arrow.Decimal128Type{Precision: 5, Scale: -3}, func(b array.Builder) { b.(*array.Decimal128Builder).Append(decimal128.FromI64(12)) }, "12000", ""},
		{"dec256", &arrow.Decimal256Type{Precision: 60, Scale: 3}, func(b array.Builder) {
			n, _ := decimal256.FromString("123456789012345678901234567890123456789012345.678", 60, 3)
			b.(*array.Decimal256Builder).Append(n)
		}, "123456789012345678901234567890123456789012345.678", ""},
		{"str", arrow.BinaryTypes.String, func(b array.Builder) { b.(*array.StringBuilder).Append("a \"q\"\n\tü€\x01\\") }, "a \"q\"\n\tü€\x01\\", `"a \"q\"\n\tü€\u0001\\"`},
		{"empty", arrow.BinaryTypes.LargeString, func(b array.Builder) { b.(*array.LargeStringBuilder).Append("") }, "", ""},
		{"view", arrow.BinaryTypes.StringView, func(b array.Builder) { b.(*array.StringViewBuilder).Append("seen, twice") }, "seen, twice", ""},
		{"bin", arrow.BinaryTypes.Binary, func(b array.Builder) { b.(*array.BinaryBuilder).Append([]byte{0, 255, 16}) }, "AP8Q", ""},
		{"fsb", &arrow.FixedSizeBinaryType{ByteWidth: 2}, func(b array.Builder) { b.(*array.FixedSizeBinaryBuilder).Append([]byte{1, 2}) }, "AQI=", ""},
		{"date", arrow.FixedWidthTypes.Date32, func(b array.Builder) { b.(*array.Date32Builder).Append(-1) }, "1969-12-31", ""},
		{"date max", arrow.FixedWidthTypes.Date32, func(b array.Builder) { b.(*array.Date32Builder).Append(math.MaxInt32) }, "5881580-07-11", ""},
		{"date bc", arrow.FixedWidthTypes.Date32, func(b array.Builder) { b.(*array.Date32Builder).Append(-800000) }, "-0221-09-04", ""},
		{"date64", arrow.FixedWidthTypes.Date64, func(b array.Builder) { b.(*array.Date64Builder).Append(86400000) }, "1970-01-02", ""},
		{"time", arrow.FixedWidthTypes.Time64us, func(b array.Builder) { b.(*array.Time64Builder).Append(45296000120) }, "12:34:56.00012", ""},
		{"time 24", arrow.FixedWidthTypes.Time64us, func(b array.Builder) { b.(*array.Time64Builder).Append(86400000000) }, "24:00:00", ""},
		{"time32", arrow.FixedWidthTypes.Time32s, func(b array.Builder) { b.(*array.Time32Builder).Append(3661) }, "01:01:01", ""},
		{"ts", local, func(b array.Builder) { b.(*array.TimestampBuilder).Append(-1) }, "1969-12-31T23:59:59.999999", ""},
		{"tstz", zoned, func(b array.Builder) { b.(*array.TimestampBuilder).Append(1767225600123450) }, "2026-01-01T00:00:00.12345Z", ""},
		{"ts far", local, func(b array.Builder) { b.(*array.TimestampBuilder).Append(9223371331200000000 - 1) }, "294247-01-01T23:59:59.999999", ""},
		{"ts s max", arrow.FixedWidthTypes.Timestamp_s, func(b array.Builder) { b.(*array.TimestampBuilder).Append(math.MaxInt64) }, "9223372036854775807sZ", ""},
		{"dur", arrow.FixedWidthTypes.Duration_ms, func(b array.Builder) { b.(*array.DurationBuilder).Append(-90500) }, "PT-90.5S", ""},
		{"months", arrow.FixedWidthTypes.MonthInterval, func(b array.Builder) { b.(*array.MonthIntervalBuilder).Append(14) }, "P14M", ""},
		{"daytime", arrow.FixedWidthTypes.DayTimeInterval, func(b array.Builder) {
			b.(*array.DayTimeIntervalBuilder).Append(arrow.DayTimeInterval{Days: 1, Milliseconds: -1})
		}, "P1DT-0.001S", ""},
		{"mdn", arrow.FixedWidthTypes.MonthDayNanoInterval, func(b array.Builder) {
			b.(*array.MonthDayNanoIntervalBuilder).Append(arrow.MonthDayNanoInterval{Months: 1, Days: -2, Nanoseconds: math.MinInt64})
		}, "P1M-2DT-9223372036.854775808S", ""},
		{"mdn zero", arrow.FixedWidthTypes.MonthDayNanoInterval, func(b array.Builder) {
			b.(*array.MonthDayNanoIntervalBuilder).Append(arrow.MonthDayNanoInterval{})
		}, "PT0S", ""},
		{"uuid", extensions.NewUUIDType(), func(b array.Builder) { b.(*extensions.UUIDBuilder).Append(someID) }, someID.String(), ""},
		{"list", arrow.ListOf(arrow.PrimitiveTypes.Int32), func(b array.Builder) {
			l := b.(*array.ListBuilder)
			l.Append(true)
			l.ValueBuilder().(*array.Int32Builder).AppendValues([]int32{1, 0, 3}, []bool{true, false, true})
		}, "[1,null,3]", "[1,null,3]"},
		{"list of text", arrow.ListOf(arrow.ListOf(arrow.BinaryTypes.String)), func(b array.Builder) {
			l := b.(*array.ListBuilder)
			l.Append(true)
			in := l.ValueBuilder().(*array.ListBuilder)
			in.Append(true)
			in.ValueBuilder().(*array.StringBuilder).Append(`x"`)
			in.AppendNull()
			in.Append(true)
		}, `[["x\""],null,[]]`, `[["x\""],null,[]]`},
		{"struct", arrow.StructOf(arrow.Field{Name: "a", Type: arrow.PrimitiveTypes.Int64, Nullable: true}, arrow.Field{Name: `b"`, Type: zoned}), func(b array.Builder) {
			s := b.(*array.StructBuilder)
			s.Append(true)
			s.FieldBuilder(0).AppendNull()
			s.FieldBuilder(1).(*array.TimestampBuilder).Append(0)
		}, `{"a":null,"b\"":"1970-01-01T00:00:00Z"}`, `{"a":null,"b\"":"1970-01-01T00:00:00Z"}`},
		{"map", arrow.MapOf(arrow.BinaryTypes.String, arrow.PrimitiveTypes.Float64), func(b array.Builder) {
			m := b.(*array.MapBuilder)
			m.Append(true)
			m.KeyBuilder().(*array.StringBuilder).Append("k")
			m.ItemBuilder().(*array.Float64Builder).Append(math.NaN())
		}, `[["k","NaN"]]`, `[["k","NaN"]]`},
		{"list of intervals", arrow.ListOf(arrow.FixedWidthTypes.MonthInterval), func(b array.Builder) {
			l := b.(*array.ListBuilder)
			l.Append(true)
			l.ValueBuilder().(*array.MonthIntervalBuilder).Append(-1)
		}, `["P-1M"]`, `["P-1M"]`},
		{"dict", &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}, func(b array.Builder) {
			if err := b.(*array.BinaryDictionaryBuilder).AppendString("x,y"); err != nil {
				panic(err)
			}
		}, "x,y", ""},
		{"ree", arrow.RunEndEncodedOf(arrow.PrimitiveTypes.Int32, arrow.PrimitiveTypes.Int64), func(b array.Builder) {
			r := b.(*array.RunEndEncodedBuilder)
			r.Append(1)
			r.ValueBuilder().(*array.Int64Builder).Append(7)
		}, "7", "7"},
		{"union", arrow.DenseUnionOf([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}, {Name: "s", Type: arrow.BinaryTypes.String}}, []arrow.UnionTypeCode{3, 5}), func(b array.Builder) {
			u := b.(*array.DenseUnionBuilder)
			u.Append(5)
			u.Child(1).(*array.StringBuilder).Append("five")
		}, "five", ""},
	}
}

// allTypes is a batch with a column per value: the value, then NULL.
func allTypes(t *testing.T) (*arrow.Schema, arrow.RecordBatch) {
	t.Helper()
	var fields []arrow.Field
	var columns []arrow.Array
	for _, v := range values() {
		b := array.NewBuilder(memory.DefaultAllocator, v.typ)
		v.fill(b)
		b.AppendNull()
		fields = append(fields, arrow.Field{Name: v.name, Type: v.typ, Nullable: true})
		columns = append(columns, b.NewArray())
		b.Release()
	}
	schema := arrow.NewSchema(fields, nil)
	return schema, array.NewRecordBatch(schema, columns, 2)
}

// streamOf encodes batches.
func streamOf(t testing.TB, schema *arrow.Schema, batches ...arrow.RecordBatch) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := ipc.NewWriter(&buf, ipc.WithSchema(schema), ipc.WithDictionaryDeltas(true))
	for _, b := range batches {
		if err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// numbers is a stream of batches of rows 0, 1, 2, … with a text beside each.
func numbers(t testing.TB, batches, rows int) []byte {
	t.Helper()
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "n", Type: arrow.PrimitiveTypes.Int64},
		{Name: "s", Type: arrow.BinaryTypes.String, Nullable: true},
	}, nil)
	var recs []arrow.RecordBatch
	for i := range batches {
		b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
		for j := range rows {
			n := i*rows + j
			b.Field(0).(*array.Int64Builder).Append(int64(n))
			b.Field(1).(*array.StringBuilder).Append("row " + strconv.Itoa(n))
		}
		recs = append(recs, b.NewRecordBatch())
		b.Release()
	}
	return streamOf(t, schema, recs...)
}

func TestJSONEveryType(t *testing.T) {
	schema, batch := allTypes(t)
	var out bytes.Buffer
	rows, err := JSON(&out, bytes.NewReader(streamOf(t, schema, batch)))
	if err != nil || rows != 2 {
		t.Fatalf("JSON: %d rows, %v", rows, err)
	}
	var doc struct {
		Columns []struct{ Name, Type string }
		Rows    [][]json.RawMessage
	}
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, out.Bytes())
	}
	for i, v := range values() {
		want := v.json
		if want == "" {
			want = strconv.Quote(v.text)
		}
		if got := string(doc.Rows[0][i]); got != want {
			t.Errorf("%s: %s, want %s", v.name, got, want)
		}
		if got := string(doc.Rows[1][i]); got != "null" && !strings.HasPrefix(v.name, "union") {
			t.Errorf("%s: NULL became %s", v.name, got)
		}
		if doc.Columns[i].Name != v.name || doc.Columns[i].Type == "" {
			t.Errorf("column %d is %+v, want %s", i, doc.Columns[i], v.name)
		}
	}
}

func TestCSVEveryType(t *testing.T) {
	schema, batch := allTypes(t)
	var out bytes.Buffer
	if rows, err := CSV(&out, bytes.NewReader(streamOf(t, schema, batch))); err != nil || rows != 2 {
		t.Fatalf("CSV: %d rows, %v", rows, err)
	}
	records, err := csv.NewReader(bytes.NewReader(out.Bytes())).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range values() {
		if records[0][i] != v.name || records[1][i] != v.text || records[2][i] != "" {
			t.Errorf("%s: %q %q %q, want %q", v.name, records[0][i], records[1][i], records[2][i], v.text)
		}
	}
}

func TestCSVTellsNullFromEmpty(t *testing.T) {
	schema := arrow.NewSchema([]arrow.Field{{Name: "a", Type: arrow.BinaryTypes.String, Nullable: true}, {Name: "b,", Type: arrow.BinaryTypes.String, Nullable: true}}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	b.Field(0).(*array.StringBuilder).AppendValues([]string{"", "", "x\r\ny"}, []bool{true, false, true})
	b.Field(1).(*array.StringBuilder).AppendValues([]string{"", "", ` "`}, []bool{false, true, true})
	var out bytes.Buffer
	if _, err := CSV(&out, bytes.NewReader(streamOf(t, schema, b.NewRecordBatch()))); err != nil {
		t.Fatal(err)
	}
	want := "a,\"b,\"\r\n\"\",\r\n,\"\"\r\n\"x\r\ny\",\" \"\"\"\r\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestEmptyResult(t *testing.T) {
	stream := numbers(t, 0, 0)
	want := map[string]string{
		"json":  `{"columns":[{"name":"n","type":"int64"},{"name":"s","type":"utf8"}],"rows":[` + "\n]}\n",
		"csv":   "n,s\r\n",
		"arrow": string(stream),
	}
	for name, doc := range want {
		f, _ := ByName(name)
		var out bytes.Buffer
		if rows, err := f.Encode(&out, bytes.NewReader(stream)); err != nil || rows != 0 || out.String() != doc {
			t.Errorf("%s: %d rows, %v, %q", name, rows, err, out.String())
		}
	}
}

func TestArrowPassesUnchanged(t *testing.T) {
	schema, batch := allTypes(t)
	stream := streamOf(t, schema, batch, batch, batch)
	var out bytes.Buffer
	rows, err := Arrow(&out, bytes.NewReader(stream))
	if err != nil || rows != 6 || !bytes.Equal(out.Bytes(), stream) {
		t.Fatalf("%d rows, %v, equal %v", rows, err, bytes.Equal(out.Bytes(), stream))
	}
}

// failing gives data and then an error in place of io.EOF.
type failing struct {
	data io.Reader
	err  error
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.data.Read(p)
	if err == io.EOF {
		return n, f.err
	}
	return n, err
}

// wrapsEOF is an error that decoders take for a clean end.
type wrapsEOF struct{}

func (wrapsEOF) Error() string { return "the source died" }
func (wrapsEOF) Unwrap() error { return io.EOF }

// TestBrokenStreamNeverLooksWhole cuts a stream at every kind of place.
func TestBrokenStreamNeverLooksWhole(t *testing.T) {
	stream := numbers(t, 3, 2000)
	died := errors.New("the source died")
	breaks := map[string]io.Reader{
		"cut in a batch":           bytes.NewReader(stream[:len(stream)/2]),
		"cut before the marker":    bytes.NewReader(stream[:len(stream)-8]),
		"cut in the marker":        bytes.NewReader(stream[:len(stream)-3]),
		"error after the marker":   &failing{bytes.NewReader(stream), died},
		"error wraps EOF":          &failing{bytes.NewReader(stream[:len(stream)-8]), wrapsEOF{}},
		"marker, error wraps EOF":  &failing{bytes.NewReader(stream), wrapsEOF{}},
		"error in a batch":         &failing{bytes.NewReader(stream[:len(stream)-4000]), died},
		"bytes after the marker":   bytes.NewReader(append(bytes.Clone(stream), 1, 2, 3)),
		"nothing":                  bytes.NewReader(nil),
		"not Arrow":                strings.NewReader("<html>Bad Gateway</html>........................"),
		"a second end-of-stream":   bytes.NewReader(append(bytes.Clone(stream), stream[len(stream)-8:]...)),
		"an error instead of data": &failing{bytes.NewReader(nil), died},
	}
	data := map[string][]byte{}
	for name, r := range breaks {
		if f, ok := r.(*failing); ok {
			r = f.data
		}
		data[name], _ = io.ReadAll(r)
	}
	for name, r := range breaks {
		for _, f := range All() {
			t.Run(name+"/"+f.Name, func(t *testing.T) {
				in := io.Reader(bytes.NewReader(data[name]))
				if fl, ok := r.(*failing); ok {
					in = &failing{in, fl.err}
				}
				var out bytes.Buffer
				_, err := f.Encode(&out, in)
				if err == nil {
					t.Fatal("no error")
				}
				if fl, ok := r.(*failing); ok && !errors.Is(err, fl.err) {
					t.Errorf("the error is %v, want %v", err, fl.err)
				}
				if looksWhole(f.Name, out.Bytes()) {
					t.Errorf("the output looks whole: …%q", out.Bytes()[max(0, out.Len()-40):])
				}
			})
		}
	}
}

func looksWhole(name string, out []byte) bool {
	switch name {
	case "json":
		return json.Valid(out)
	case "arrow":
		return bytes.HasSuffix(out, []byte{0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0})
	case "parquet":
		return len(out) > 4 && bytes.HasSuffix(out, []byte("PAR1"))
	}
	return false
}

// brokenWriter fails after some bytes.
type brokenWriter struct{ left int }

func (b *brokenWriter) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, errors.New("broken pipe")
	}
	return len(p), nil
}

func TestWriteErrorsEnd(t *testing.T) {
	stream := numbers(t, 3, 2000)
	for _, f := range All() {
		if _, err := f.Encode(&brokenWriter{left: 1000}, bytes.NewReader(stream)); err == nil || !strings.Contains(err.Error(), "broken pipe") {
			t.Errorf("%s: %v", f.Name, err)
		}
	}
}

func TestNegotiate(t *testing.T) {
	for accept, want := range map[string]string{
		"":                                     "json",
		"*/*":                                  "json",
		"application/json":                     "json",
		"text/csv":                             "csv",
		"text/*":                               "csv",
		MediaArrow:                             "arrow",
		MediaParquet + ", " + MediaCSV:         "csv",
		"application/json;q=0.5, text/csv":     "csv",
		"application/json;q=0, */*":            "csv",
		"application/*;q=0.2, text/csv;q=0.1":  "json",
		"text/html, application/xml;q=0.9":     "",
		"application/json;q=0":                 "",
		"Text/CSV ; charset=utf-8; header=yes": "csv",
	} {
		f, ok := Negotiate(accept)
		if f.Name != want || ok != (want != "") {
			t.Errorf("%q: %q, %v; want %q", accept, f.Name, ok, want)
		}
	}
}
