package postgres

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/testpg"
)

// setup makes the types that PostgreSQL does not bring along.
const setup = `
create type mood as enum ('sad', 'ok', 'very happy');
create domain cents as numeric(12,2);
create domain positive as int check (value > 0);
create domain shout as text;
create domain ints as int[];
create type pair as (a int, b text);
`

// typeCases are values of each type, as literals.
var typeCases = []struct {
	typ, arrow string // arrow is the wanted Arrow type
	values     []string
}{
	{"bool", "bool", []string{"true", "false"}},
	{"int2", "int16", []string{"0", "-32768", "32767"}},
	{"int4", "int32", []string{"0", "-2147483648", "2147483647"}},
	{"int8", "int64", []string{"0", "-9223372036854775808", "9223372036854775807"}},
	{"float4", "float32", []string{"0", "1.5", "-0", "3.4028235e38", "1e-45", "NaN", "Infinity", "-Infinity", "0.1", "123456.7", "1e6"}},
	{"float8", "float64", []string{"0", "1.5", "1.7976931348623157e308", "5e-324", "NaN", "Infinity", "-Infinity", "0.1", "1e15", "123456789012345"}},
	{"oid", "uint32", []string{"0", "4294967295"}},
	{"numeric(10,2)", "decimal(10, 2)", []string{"0", "99999999.99", "-99999999.99", "0.01", "-0.05", "10", "10000", "1234.5"}},
	{"numeric(38,0)", "decimal(38, 0)", []string{"99999999999999999999999999999999999999", "-99999999999999999999999999999999999999", "0", "10000000000000000000000"}},
	{"numeric(38,38)", "decimal(38, 38)", []string{"0.99999999999999999999999999999999999999", "-0.00000000000000000000000000000000000001"}},
	{"numeric(38,19)", "decimal(38, 19)", []string{"1234567890123456789.1234567890123456789", "-1", "0.0000000000000000001"}},
	{"numeric(76,10)", "decimal256(76, 10)", []string{strings.Repeat("9", 66) + ".0123456789", "-" + strings.Repeat("9", 66) + ".9999999999", "0"}},
	{"numeric(5,-2)", "decimal(7, 0)", []string{"1234500", "-9999900", "0"}},
	{"numeric(2,5)", "decimal(5, 5)", []string{"0.00099", "-0.00001"}},
	{"numeric(100,2)", "utf8", []string{strings.Repeat("9", 98) + ".01", "NaN"}},
	{"numeric", "utf8", []string{"0", "1e100", "-1e-100", "NaN", "Infinity", "-Infinity", "1.10"}},
	{"cents", "decimal(12, 2)", []string{"1.50"}},
	{"positive", "int32", []string{"7"}},
	{"shout", "utf8", []string{"HEY"}},
	{"text", "utf8", []string{"", "a", "grüße 🚰", "tab\tnew\nline", strings.Repeat("x", 100_000)}},
	{"varchar(10)", "utf8", []string{"", "0123456789"}},
	{"char(5)", "utf8", []string{"ab"}},
	{`"char"`, "utf8", []string{"x", ""}},
	{"name", "utf8", []string{"some_name"}},
	{"bytea", "binary", []string{"", `\x00ff`, `\x` + strings.Repeat("de", 5000)}},
	{"date", "date32", []string{"2026-11-20", "1970-01-01", "1969-12-31", "4713-01-01 BC", "5874897-12-31", "0001-12-31 BC"}},
	{"time", "time64[us]", []string{"00:00:00", "23:59:59.999999", "12:34:56.7"}},
	{"timetz", "utf8", []string{"12:34:56.789+02", "24:00:00-15:59"}},
	{"timestamp", "timestamp[us]", []string{"2026-11-20 12:34:56.123456", "1969-12-31 23:59:59.999999", "4713-01-01 00:00:00 BC", "294246-12-31 23:59:59"}},
	{"timestamptz", "timestamp[us, tz=UTC]", []string{"2026-11-20 12:34:56.123456+05:30", "0044-03-15 00:00:00+00 BC"}},
	{"interval", "month_day_nano_interval", []string{"0", "1 year 2 mons 3 days 04:05:06.789", "-1 mons +2 days -03:00:00.000001", "100 years", "-178000000 years", "1 day -00:00:01"}},
	{"uuid", "utf8", []string{"00000000-0000-0000-0000-000000000000", "ffffffff-1234-5678-9abc-def012345678"}},
	{"json", "utf8", []string{`{"a": [1, 2,  null]}`, `"x"`}},
	{"jsonb", "utf8", []string{`{"b":1,"a":[true,null]}`, `1.50`}},
	{"inet", "utf8", []string{"10.0.0.1", "10.0.0.0/8", "::1"}},
	{"cidr", "utf8", []string{"10.0.0.0/8"}},
	{"macaddr", "utf8", []string{"08:00:2b:01:02:03"}},
	{"money", "utf8", []string{"12.34"}},
	{"bit(5)", "utf8", []string{"10101"}},
	{"xml", "utf8", []string{"<a>b</a>"}},
	{"tsvector", "utf8", []string{"a fat cat"}},
	{"point", "utf8", []string{"(1,2)"}},
	{"box", "utf8", []string{"(1,1),(0,0)"}},
	{"int4range", "utf8", []string{"[1,5)", "empty"}},
	{"int2vector", "utf8", []string{"1 2 3"}},
	{"mood", "utf8", []string{"sad", "very happy"}},
	{"pair", "utf8", []string{`(1,"x y")`, "(,)"}},
	{"ints", "list<item: int32, nullable>", []string{"{1,2}"}},
	{"bool[]", "list<item: bool, nullable>", []string{"{t,f,NULL}", "{}"}},
	{"int2[]", "list<item: int16, nullable>", []string{"{1,NULL,3}"}},
	{"int4[]", "list<item: int32, nullable>", []string{"{1,NULL,3}", "{}", "{-2147483648}"}},
	{"int8[]", "list<item: int64, nullable>", []string{"{9223372036854775807}"}},
	{"float8[]", "list<item: float64, nullable>", []string{"{0.1,NaN,Infinity}"}},
	{"numeric(10,2)[]", "list<item: decimal(10, 2), nullable>", []string{"{1.50,NULL,-2.25}"}},
	{"numeric[]", "list<item: utf8, nullable>", []string{"{1.5,NaN,1e50}"}},
	{"text[]", "list<item: utf8, nullable>", []string{`{a,"b c","",NULL,"NULL","q\"uo\\te","{x}"}`, "{}"}},
	{"varchar(9)[]", "list<item: utf8, nullable>", []string{`{a,b}`}},
	{"bytea[]", "list<item: binary, nullable>", []string{`{"\\x00ff",NULL,"\\x"}`}},
	{"date[]", "list<item: date32, nullable>", []string{"{2026-11-20,1969-12-31}"}},
	{"time[]", "list<item: time64[us], nullable>", []string{"{12:34:56.7}"}},
	{"timestamp[]", "list<item: timestamp[us], nullable>", []string{`{"2026-11-20 12:34:56.1"}`}},
	{"timestamptz[]", "list<item: timestamp[us, tz=UTC], nullable>", []string{`{"2026-11-20 12:34:56.1+00"}`}},
	{"interval[]", "list<item: month_day_nano_interval, nullable>", []string{`{"1 year 2 days"}`}},
	{"uuid[]", "list<item: utf8, nullable>", []string{"{ffffffff-1234-5678-9abc-def012345678,NULL}"}},
	{"json[]", "list<item: utf8, nullable>", []string{`{"{\"a\": 1}",NULL}`}},
	{"jsonb[]", "list<item: utf8, nullable>", []string{`{"{\"a\": 1}"}`}},
	{"inet[]", "list<item: utf8, nullable>", []string{"{10.0.0.1,::1}"}},
	{"mood[]", "list<item: utf8, nullable>", []string{`{sad,"very happy",NULL}`}},
	{"pair[]", "list<item: utf8, nullable>", []string{`{"(1,\"x y\")",NULL}`}},
	{"positive[]", "list<item: int32, nullable>", []string{"{1,2,NULL}"}},
	{"cents[]", "list<item: decimal(12, 2), nullable>", []string{"{1.50}"}},
	{"box[]", "list<item: utf8, nullable>", []string{"{(1,1),(0,0);(2,2),(1,1)}"}},
	{"int4range[]", "list<item: utf8, nullable>", []string{`{"[1,5)",empty}`}},
}

// Every value of every type must read as PostgreSQL itself prints it.
func TestTypesMatchPostgres(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	s.Exec(t, setup)
	db := openSource(t, s, with("options", "-c TimeZone=UTC"))
	for i, c := range typeCases {
		t.Run(c.typ, func(t *testing.T) {
			table := fmt.Sprintf("t%d", i)
			s.Exec(t, fmt.Sprintf("create table %s (n serial, v %s); grant select on %s to app", table, c.typ, table))
			s.Exec(t, fmt.Sprintf("insert into %s (v) values (null)", table))
			for _, v := range c.values {
				s.Exec(t, fmt.Sprintf("insert into %s (v) values ('%s')", table, strings.ReplaceAll(v, "'", "''")))
			}
			s.Exec(t, fmt.Sprintf("insert into %s (v) values (null)", table))
			sql := fmt.Sprintf("select v from %s order by n", table)

			schema, recs, err := collect(testContext(t), newStatement(t, db, sql))
			if err != nil {
				t.Fatal(err)
			}
			if got := schema.Field(0).Type.String(); got != c.arrow {
				t.Errorf("Arrow type %s, want %s", got, c.arrow)
			}
			if schema.Field(0).Metadata.FindKey(metaType) < 0 || schema.Field(0).Metadata.FindKey(metaText) >= 0 {
				t.Errorf("metadata %v", schema.Field(0).Metadata)
			}
			want := s.Rows(t, "set timezone to 'UTC'; set datestyle to 'ISO'; "+sql)
			got := formatRows(t, schema, recs)
			if strings.HasPrefix(c.arrow, "list") || strings.HasPrefix(c.typ, "float") || strings.HasPrefix(c.typ, "numeric(") {
				// Compare as the server reads it: it quotes and pads in more ways than one.
				for r := range got {
					got[r][0], want[r][0] = normal(t, s, c.typ, got[r][0]), normal(t, s, c.typ, want[r][0])
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-postgres +arrow\n%s", diff)
			}
		})
	}
}

// normal passes a value's text through the server's own reading and writing.
func normal(t *testing.T, s *testpg.Server, typ, v string) string {
	if v == testpg.Null {
		return v
	}
	if typ == "box[]" { // its elements have commas, its arrays semicolons
		return strings.ReplaceAll(strings.ReplaceAll(v, "\"", ""), "),(2", ");(2")
	}
	return s.Value(t, fmt.Sprintf("set timezone to 'UTC'; set datestyle to 'ISO'; select '%s'::%s::text", strings.ReplaceAll(v, "'", "''"), typ))
}

// Values that the Arrow type cannot hold turn the column into text, unchanged.
func TestMisfitsComeAsText(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	db := openSource(t, s, with("options", "-c TimeZone=UTC"))
	for _, c := range []struct{ typ, value, why string }{
		{"numeric(10,2)", "NaN", "NaN"},
		{"date", "infinity", "infinity"},
		{"date", "-infinity", "-infinity"},
		{"timestamp", "infinity", "infinity"},
		{"timestamptz", "-infinity", "-infinity"},
		{"timestamp", "294276-12-31 23:59:59", "a time after the year 294246"},
		{"time", "24:00:00", "24:00:00"},
		{"interval", "2700000:00:00", "an interval of more than 292 years of microseconds"},
		{"int4[]", "{{1,2},{3,4}}", "an array of several dimensions or with a lower bound other than 1"},
		{"int4[]", "[0:1]={1,2}", "an array of several dimensions or with a lower bound other than 1"},
		{"inet[]", "{{10.0.0.1}}", "an array of several dimensions or with a lower bound other than 1"},
		{"uuid[]", "[5:5]={ffffffff-1234-5678-9abc-def012345678}", "an array of several dimensions or with a lower bound other than 1"},
		{"numeric(5,1)[]", "{1.5,NaN}", "NaN"},
	} {
		t.Run(c.typ+" "+c.value, func(t *testing.T) {
			sql := fmt.Sprintf("select 7 as a, '%s'::%s as v", c.value, c.typ)
			schema, recs, err := collect(testContext(t), newStatement(t, db, sql))
			if err != nil {
				t.Fatal(err)
			}
			why, _ := schema.Field(1).Metadata.GetValue(metaText)
			if why != c.why || schema.Field(1).Type.String() != "utf8" || schema.Field(0).Type.String() != "int32" {
				t.Errorf("schema %v", schema)
			}
			if got := formatRows(t, schema, recs)[0][1]; got != c.value {
				t.Errorf("got %s", got)
			}
		})
	}
}

// Past the first batch the schema is out: the query must fail, and name the value, and
// succeed when it is run again.
func TestLateMisfit(t *testing.T) {
	t.Parallel()
	db := openSource(t, testpg.Shared(t))
	sql := "select (case when i = 60000 then 'NaN' else i::numeric end)::numeric(10,2) as price from generate_series(1, 70000) i"
	e := queryErr(t, db, sql)
	if e.Class != "source" || e.Step != "stream" || !strings.Contains(e.Message, `column "price", row 60000: NaN does not fit decimal(10, 2)`) {
		t.Errorf("%+v", e)
	}
	rows := queryRows(t, db, sql)
	if len(rows) != 70000 || rows[59999][0] != "NaN" || rows[69999][0] != "70000.00" {
		t.Errorf("%d rows", len(rows))
	}
}

// A query can make the server send another encoding: it must not pass as UTF-8.
func TestBytesThatAreNoUTF8(t *testing.T) {
	t.Parallel()
	db := openSource(t, testpg.Shared(t))
	sql := `select 'fine' as a, set_config('client_encoding', 'LATIN1', true) as b, U&'\00fc' as c`
	schema, recs, err := collect(testContext(t), newStatement(t, db, sql))
	if err != nil {
		t.Fatal(err)
	}
	got := formatRows(t, schema, recs)[0]
	if got[0] != "fine" || got[2] != `\xfc` || schema.Field(2).Type.String() != "binary" {
		t.Errorf("%v %v", got, schema)
	}
	if got := queryValue(t, db, "show client_encoding"); got != "UTF8" {
		t.Errorf("client_encoding leaks: %s", got)
	}
}

func TestRandomNumerics(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	db := openSource(t, s)
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 12 {
		precision := 1 + rnd.IntN(76)
		scale := rnd.IntN(precision + 1)
		var values []string
		for range 200 {
			digits := 1 + rnd.IntN(precision)
			var b strings.Builder
			for range digits {
				b.WriteByte("00123456789"[rnd.IntN(11)])
			}
			v := b.String() + "e-" + fmt.Sprint(scale)
			if rnd.IntN(2) == 0 {
				v = "-" + v
			}
			values = append(values, v)
		}
		typ := fmt.Sprintf("numeric(%d,%d)", precision, scale)
		sql := fmt.Sprintf("select v::%s as v from unnest('{%s}'::numeric[]) with ordinality u (v, n) order by n", typ, strings.Join(values, ","))
		want := s.Rows(t, sql)
		if diff := cmp.Diff(want, queryRows(t, db, sql)); diff != "" {
			t.Errorf("%s: -postgres +arrow\n%s", typ, diff)
		}
	}
}
