package postgres

import (
	"fmt"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/testpg"
)

// record builds a batch of columns named p0, p1, … out of JSON rows.
func record(t testing.TB, types []arrow.DataType, json string) arrow.RecordBatch {
	t.Helper()
	var fields []arrow.Field
	for i, dt := range types {
		fields = append(fields, arrow.Field{Name: fmt.Sprintf("p%d", i), Type: dt, Nullable: true})
	}
	rec, _, err := array.RecordFromJSON(memory.DefaultAllocator, arrow.NewSchema(fields, nil), strings.NewReader(json))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rec.Release)
	return rec
}

// What a result column held must come back the same when it is bound as a parameter.
func TestParametersRoundTrip(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	s.Exec(t, setup)
	db := openSource(t, s, with("options", "-c TimeZone=Asia/Tokyo"))
	ctx := testContext(t)
	for _, c := range typeCases {
		if c.typ == "pair" || strings.HasPrefix(c.typ, "box") {
			continue // what they print as an element is no literal for them
		}
		t.Run(c.typ, func(t *testing.T) {
			var literals []string
			for _, v := range append(c.values, "") {
				if v == "" && c.values[0] != "" {
					literals = append(literals, "(null)")
					continue
				}
				literals = append(literals, "('"+strings.ReplaceAll(v, "'", "''")+"')")
			}
			values := "select v::" + c.typ + " as v from (values " + strings.Join(literals, ",") + ") x(v)"
			_, recs, err := collect(ctx, newStatement(t, db, values))
			if err != nil {
				t.Fatal(err)
			}
			want := queryRows(t, db, "select v::text from ("+values+") y")
			st := newStatement(t, db, "select $1::"+c.typ+"::text")
			if err := st.Bind(ctx, recs[0]); err != nil {
				t.Fatal(err)
			}
			schema, got, err := collect(ctx, st)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, formatRows(t, schema, got)); diff != "" {
				t.Errorf("-written +bound\n%s", diff)
			}
		})
	}
}

func TestParametersOfEveryArrowType(t *testing.T) {
	t.Parallel()
	db := openSource(t, testpg.Shared(t), with("options", "-c TimeZone=Asia/Tokyo"))
	ctx := testContext(t)
	for _, c := range []struct {
		dt         arrow.DataType
		json, cast string
		want       string
	}{
		{arrow.PrimitiveTypes.Int8, "-128", "int", "-128"},
		{arrow.PrimitiveTypes.Uint8, "255", "int", "255"},
		{arrow.PrimitiveTypes.Uint16, "65535", "int", "65535"},
		{arrow.PrimitiveTypes.Uint64, "18446744073709551615", "numeric", "18446744073709551615"},
		{arrow.PrimitiveTypes.Int64, "5", "text", "5"},
		{arrow.PrimitiveTypes.Float64, "0.1", "float8", "0.1"},
		{arrow.BinaryTypes.LargeString, `"x"`, "text", "x"},
		{arrow.BinaryTypes.LargeBinary, `"AP8="`, "bytea", `\x00ff`},
		{arrow.FixedWidthTypes.Date64, `"2026-11-20"`, "date", "2026-11-20"},
		{arrow.FixedWidthTypes.Time32s, `"12:34:56"`, "time", "12:34:56"},
		{arrow.FixedWidthTypes.Time32ms, `"12:34:56.789"`, "time", "12:34:56.789"},
		{arrow.FixedWidthTypes.Time64ns, `"12:34:56.123456789"`, "time", "12:34:56.123457"},
		{&arrow.TimestampType{Unit: arrow.Second}, `"2026-11-20 12:34:56"`, "timestamp", "2026-11-20 12:34:56"},
		{&arrow.TimestampType{Unit: arrow.Nanosecond}, `"2026-11-20 12:34:56.123456"`, "timestamp", "2026-11-20 12:34:56.123456"},
		{&arrow.TimestampType{Unit: arrow.Millisecond, TimeZone: "UTC"}, `"2026-11-20 12:34:56.500Z"`, "timestamptz", "2026-11-20 21:34:56.5+09"},
		{&arrow.TimestampType{Unit: arrow.Millisecond}, `"2026-11-20 12:34:56.500"`, "timestamptz", "2026-11-20 21:34:56.5+09"},
		{arrow.FixedWidthTypes.MonthInterval, `{"months": 14}`, "interval", "1 year 2 mons"},
		{arrow.FixedWidthTypes.DayTimeInterval, `{"days": -1, "milliseconds": 1500}`, "interval", "-1 days +00:00:01.5"},
		{arrow.FixedWidthTypes.Duration_ms, `"1500ms"`, "interval", "00:00:01.5"},
		{&arrow.FixedSizeBinaryType{ByteWidth: 16}, `"/////xI0VniavN7wEjRWeA=="`, "uuid", "ffffffff-1234-5678-9abc-def012345678"},
		{&arrow.Decimal128Type{Precision: 10, Scale: 2}, `"-12.30"`, "numeric", "-12.30"},
		{arrow.ListOf(arrow.PrimitiveTypes.Int32), `[1, null, 3]`, "int[]", "{1,NULL,3}"},
		{arrow.ListOf(arrow.BinaryTypes.String), `["a\"b", "c\\d", "", null]`, "text[]", `{"a\"b","c\\d","",NULL}`},
		{arrow.ListOf(arrow.ListOf(arrow.PrimitiveTypes.Int32)), `[[1,2],[3,4]]`, "int[]", "{{1,2},{3,4}}"},
		{arrow.Null, "null", "int", testpg.Null},
	} {
		t.Run(c.dt.String(), func(t *testing.T) {
			st := newStatement(t, db, "select $1::"+c.cast+"::text")
			if err := st.Bind(ctx, record(t, []arrow.DataType{c.dt}, `[{"p0": `+c.json+`}]`)); err != nil {
				t.Fatal(err)
			}
			schema, recs, err := collect(ctx, st)
			if err != nil {
				t.Fatal(err)
			}
			if got := formatRows(t, schema, recs)[0][0]; got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestPreparedStatement(t *testing.T) {
	t.Parallel()
	db := openSource(t, testpg.Shared(t))
	ctx := testContext(t)
	st := newStatement(t, db, "select $1::int + 1 as n, $2::timestamptz as at, $3 || 'x' as s")
	if _, err := st.GetParameterSchema(); err == nil {
		t.Error("a parameter schema before Prepare")
	}
	if err := st.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	ps, err := st.GetParameterSchema()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range ps.Fields() {
		got = append(got, f.Name+" "+f.Type.String())
	}
	if diff := cmp.Diff([]string{"$1 int32", "$2 timestamp[us, tz=UTC]", "$3 utf8"}, got); diff != "" {
		t.Error(diff)
	}
	rs, err := st.ExecuteSchema(ctx)
	if err != nil || rs.NumFields() != 3 || rs.Field(0).Name != "n" {
		t.Errorf("%v %v", rs, err)
	}
	types := []arrow.DataType{arrow.PrimitiveTypes.Int64, arrow.BinaryTypes.String, arrow.BinaryTypes.String}
	_ = st.Bind(ctx, record(t, types, `[{"p0": 41, "p1": "2026-01-01 00:00:00Z", "p2": "y"}, {"p0": null, "p1": null, "p2": null}]`))
	for range 2 { // a bound record can be used again
		schema, recs, err := collect(ctx, st)
		if err != nil {
			t.Fatal(err)
		}
		want := [][]string{{"42", "2026-01-01 00:00:00+00", "yx"}, {testpg.Null, testpg.Null, testpg.Null}}
		if diff := cmp.Diff(want, formatRows(t, schema, recs)); diff != "" {
			t.Error(diff)
		}
	}
	_ = st.Bind(ctx, record(t, types[:1], `[{"p0": 1}]`))
	if _, _, err := collect(ctx, st); errs.ClassOf(err) != errs.Invalid || !strings.Contains(err.Error(), "takes 3 parameters, and 1 are bound") {
		t.Errorf("%v", err)
	}
	_ = st.Bind(ctx, record(t, types, `[{"p0": 5000000000, "p1": null, "p2": null}]`))
	if _, _, err := collect(ctx, st); errs.As(err).SQLState != "22003" {
		t.Errorf("%+v", errs.As(err))
	}
}

// Several rows run one after the other; their results follow each other.
func TestManyParameterRows(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	s.Exec(t, "grant create on schema public to app; create table m (a int primary key); grant all on m to app")
	ctx := testContext(t)
	var rows []string
	for i := range 1000 {
		rows = append(rows, fmt.Sprintf(`{"p0": %d}`, i))
	}
	types := []arrow.DataType{arrow.PrimitiveTypes.Int32}
	rec := record(t, types, "["+strings.Join(rows, ",")+"]")
	reader, err := array.NewRecordReader(rec.Schema(), []arrow.RecordBatch{rec.NewSlice(0, 1), rec.NewSlice(1, 1), rec.NewSlice(1, 700), rec.NewSlice(700, 1000)})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Release()

	st := newStatement(t, openSource(t, s), "select $1::int as a, i from generate_series(1, 3) i")
	_ = st.BindStream(ctx, reader)
	schema, recs, err := collect(ctx, st)
	if err != nil {
		t.Fatal(err)
	}
	got := formatRows(t, schema, recs)
	if len(got) != 3000 || got[0][0] != "0" || got[2999][0] != "999" || got[2999][1] != "3" || got[1500][0] != "500" {
		t.Errorf("%d rows", len(got))
	}

	db := openSource(t, s, writable)
	st = newStatement(t, db, "insert into m values ($1)")
	_ = st.Bind(ctx, rec)
	if n, err := st.ExecuteUpdate(ctx); err != nil || n != 1000 {
		t.Fatalf("%d %v", n, err)
	}
	if got := s.Value(t, "select count(*) from m"); got != "1000" {
		t.Errorf("%s rows written", got)
	}
	// All or nothing: the last row is there already.
	st = newStatement(t, db, "insert into m values ($1)")
	_ = st.Bind(ctx, record(t, types, `[{"p0": 5000}, {"p0": 5001}, {"p0": 999}]`))
	if _, err := st.ExecuteUpdate(ctx); errs.As(err).SQLState != "23505" {
		t.Errorf("%v", err)
	}
	if got := s.Value(t, "select count(*) from m"); got != "1000" {
		t.Errorf("%s rows after a failure", got)
	}
	// No rows: nothing runs.
	st = newStatement(t, db, "insert into m values ($1)")
	_ = st.Bind(ctx, record(t, types, `[]`))
	if n, err := st.ExecuteUpdate(ctx); err != nil || n > 0 {
		t.Errorf("%d %v", n, err)
	}
}
