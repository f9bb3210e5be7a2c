package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/testpg"
)

// typeCase is a column of the table of all types. Row 0 of the table is null
// throughout; then come the values, and nulls where a column has fewer than others.
type typeCase struct {
	name   string
	sql    string // the column's type in SQL
	arrow  string // the type that comes, as Arrow names it
	pg     string // the type that the field's metadata names
	canon  canon
	values []string // SQL literals
}

// typeCases is every type that the connector knows, and types that it does not.
var typeCases = []typeCase{
	{"c_bool", "bool", "bool", "bool", canonBool, []string{"true", "false"}},
	{"c_int2", "int2", "int16", "int2", canonNumber, []string{"-32768", "32767", "0"}},
	{"c_int4", "int4", "int32", "int4", canonNumber, []string{"-2147483648", "2147483647", "-1"}},
	{"c_int8", "int8", "int64", "int8", canonNumber, []string{"-9223372036854775808", "9223372036854775807", "9007199254740993"}},
	{"c_oid", "oid", "uint32", "oid", canonNumber, []string{"0", "4294967295"}},
	{"c_float4", "float4", "float32", "float4", canonFloat32, []string{"3.4028235e38", "1e-45", "-0.0", "'NaN'", "'-Infinity'", "0.1"}},
	{"c_float8", "float8", "float64", "float8", canonFloat64, []string{"1.7976931348623157e308", "5e-324", "'-0'", "'NaN'", "'Infinity'", "0.1", "1e21", "123456789.123456789"}},
	{"c_num_10_2", "numeric(10,2)", "decimal(10, 2)", "numeric(10,2)", canonText, []string{"99999999.99", "-99999999.99", "0", "0.01", "-0.5"}},
	{"c_num_38_10", "numeric(38,10)", "decimal(38, 10)", "numeric(38,10)", canonText, []string{"9999999999999999999999999999.9999999999", "-9999999999999999999999999999.9999999999", "1e-10"}},
	{"c_num_60_20", "numeric(60,20)", "decimal256(60, 20)", "numeric(60,20)", canonText, []string{"9999999999999999999999999999999999999999.99999999999999999999", "-1e-20"}},
	{"c_num_5_0", "numeric(5,0)", "decimal(5, 0)", "numeric(5,0)", canonText, []string{"99999", "-99999"}},
	{"c_num_neg", "numeric(3,-2)", "decimal(5, 0)", "numeric(3,-2)", canonText, []string{"99900", "-100"}},
	{"c_num_100_50", "numeric(100,50)", "utf8", "numeric(100,50)", canonText, []string{"1e49", "1e-50"}},
	{"c_numeric", "numeric", "utf8", "numeric", canonText, []string{"'NaN'", "'Infinity'", "'-Infinity'", "1.10", "1e130", "-1e-130", "0.00"}},
	{"c_text", "text", "utf8", "text", canonText, []string{"''", "'a'", "E'line\\nfeed\\r\\n, \"quoted\"; tab\\t'", "'Ωmega 漢字 🚰'", "' spaces '", "'\\N'", "'NULL'", "repeat('long ', 2000)"}},
	{"c_varchar", "varchar(5)", "utf8", "varchar(5)", canonText, []string{"'12345'", "'é'"}},
	{"c_char", "char(4)", "utf8", "bpchar(4)", canonText, []string{"'ab'", "'abcd'", "''"}},
	{"c_name", "name", "utf8", "name", canonText, []string{"'a name'"}},
	{"c_bytea", "bytea", "binary", "bytea", canonBytes, []string{`'\x'`, `'\x00ff10'`, "decode(repeat('00ff', 500), 'hex')"}},
	{"c_date", "date", "date32", "date", canonTime, []string{"'1970-01-01'", "'4714-11-24 BC'", "'0044-03-15 BC'", "'0001-01-01'", "'5874897-12-31'", "'2024-02-29'"}},
	{"c_time", "time", "time64[us]", "time", canonText, []string{"'00:00:00'", "'23:59:59.999999'", "'12:30:00.5'"}},
	{"c_timetz", "timetz", "utf8", "timetz", canonText, []string{"'23:59:59.999999-15:59'", "'00:00:00+02'"}},
	{"c_ts", "timestamp", "timestamp[us]", "timestamp", canonTime, []string{"'1970-01-01 00:00:00'", "'4714-11-24 00:00:00 BC'", "'294246-12-31 23:59:59.999999'", "'1969-12-31 23:59:59.999999'", "'2026-02-03 04:05:06.7'"}},
	{"c_tstz", "timestamptz", "timestamp[us, tz=UTC]", "timestamptz", canonTime, []string{"'1970-01-01 00:00:00+00'", "'4714-11-24 00:00:00+00 BC'", "'294246-12-31 23:59:59.999999+00'", "'2026-07-01 12:00:00+05:30'"}},
	{"c_interval", "interval", "month_day_nano_interval", "interval", canonInterval, []string{"'0'", "'1 year 2 months 3 days 04:05:06.789'", "'-1 year -2 months -3 days -04:05:06.000001'", "'1 mon -1 day'", "'178000000 years'", "'2147483647 days'", "'-0.000001 s'"}},
	{"c_uuid", "uuid", "utf8", "uuid", canonText, []string{"'00000000-0000-0000-0000-000000000000'", "'FFFFFFFF-ffff-ffff-ffff-ffffffffffff'"}},
	{"c_json", "json", "utf8", "json", canonText, []string{`'{"a": [1, null, "x"],   "a": 2}'`, "'null'", "'[]'"}},
	{"c_jsonb", "jsonb", "utf8", "jsonb", canonText, []string{`'{"b":1,"a":{"x":1e400}}'`, "'null'", `'"s"'`}},
	{"c_inet", "inet", "utf8", "inet", canonText, []string{"'10.0.0.1/8'", "'::1'"}},
	{"c_cidr", "cidr", "utf8", "cidr", canonText, []string{"'10.0.0.0/8'"}},
	{"c_macaddr", "macaddr", "utf8", "macaddr", canonText, []string{"'08:00:2b:01:02:03'"}},
	{"c_bit", "bit(5)", "utf8", "bit", canonText, []string{"B'10101'"}},
	{"c_varbit", "varbit", "utf8", "varbit", canonText, []string{"B''", "B'1'"}},
	{"c_money", "money", "utf8", "money", canonText, []string{"'-92233720368547758.08'", "'1.5'"}},
	{"c_xml", "xml", "utf8", "xml", canonText, []string{"'<a b=\"c\">d</a>'"}},
	{"c_enum", "mood", "utf8", "value_for_value.mood", canonText, []string{"'happy'", "'so-so, \"really\"'"}},
	{"c_domain", "posint", "int32", "int4", canonNumber, []string{"1", "2147483647"}},
	{"c_domain_num", "price", "decimal(12, 4)", "numeric(12,4)", canonText, []string{"12345678.9012"}},
	{"c_composite", "pair", "utf8", "value_for_value.pair", canonText, []string{"row(1,'a,b')", "row(null,'')"}},
	{"c_range", "int4range", "utf8", "int4range", canonText, []string{"'[1,10)'", "'empty'"}},
	{"c_tsrange", "tsrange", "utf8", "tsrange", canonText, []string{"'[2026-01-01,)'"}},
	{"c_point", "point", "utf8", "point", canonText, []string{"'(1.5,-2)'"}},
	{"c_tsvector", "tsvector", "utf8", "tsvector", canonText, []string{"'a:1 b:2'"}},

	{"a_bool", "bool[]", "list<item: bool, nullable>", "bool[]", canonList(canonBool), []string{"'{t,NULL,f}'", "'{}'"}},
	{"a_int2", "int2[]", "list<item: int16, nullable>", "int2[]", canonList(canonNumber), []string{"'{-32768,NULL,32767}'"}},
	{"a_int4", "int4[]", "list<item: int32, nullable>", "int4[]", canonList(canonNumber), []string{"'{1,NULL,-2147483648}'", "'{}'", "'{NULL}'"}},
	{"a_int8", "int8[]", "list<item: int64, nullable>", "int8[]", canonList(canonNumber), []string{"'{9223372036854775807}'"}},
	{"a_float4", "float4[]", "list<item: float32, nullable>", "float4[]", canonList(canonFloat32), []string{"'{0.1,NaN,Infinity}'"}},
	{"a_float8", "float8[]", "list<item: float64, nullable>", "float8[]", canonList(canonFloat64), []string{"'{0.1,NaN,-Infinity,5e-324}'"}},
	{"a_num", "numeric(10,2)[]", "list<item: decimal(10, 2), nullable>", "numeric(10,2)[]", canonList(canonText), []string{"'{1.5,NULL,-99999999.99}'"}},
	{"a_numeric", "numeric[]", "list<item: utf8, nullable>", "numeric[]", canonList(canonText), []string{"'{1.50,NaN,1e40}'"}},
	{"a_text", "text[]", "list<item: utf8, nullable>", "text[]", canonList(canonText), []string{`array['a,b','','"q"',null,'NULL','back\slash','{}']`}},
	{"a_varchar", "varchar(9)[]", "list<item: utf8, nullable>", "varchar(9)[]", canonList(canonText), []string{"array['x y']"}},
	{"a_bytea", "bytea[]", "list<item: binary, nullable>", "bytea[]", canonList(canonBytes), []string{`array['\x00ff'::bytea,null,'\x']`}},
	{"a_date", "date[]", "list<item: date32, nullable>", "date[]", canonList(canonTime), []string{"array['0044-03-15 BC'::date,null]"}},
	{"a_time", "time[]", "list<item: time64[us], nullable>", "time[]", canonList(canonText), []string{"array['23:59:59.5'::time]"}},
	{"a_ts", "timestamp[]", "list<item: timestamp[us], nullable>", "timestamp[]", canonList(canonTime), []string{"array['2026-02-03 04:05:06.7'::timestamp,null]"}},
	{"a_tstz", "timestamptz[]", "list<item: timestamp[us, tz=UTC], nullable>", "timestamptz[]", canonList(canonTime), []string{"array['2026-07-01 12:00:00+05:30'::timestamptz]"}},
	{"a_interval", "interval[]", "list<item: month_day_nano_interval, nullable>", "interval[]", canonList(canonInterval), []string{"array['1 mon -1 day 00:00:01.5'::interval,null]"}},
	{"a_uuid", "uuid[]", "list<item: utf8, nullable>", "uuid[]", canonList(canonText), []string{"'{00000000-0000-0000-0000-000000000001,NULL}'"}},
	{"a_jsonb", "jsonb[]", "list<item: utf8, nullable>", "jsonb[]", canonList(canonText), []string{`array['{"a":"b,c"}'::jsonb,'null',null]`}},
	{"a_inet", "inet[]", "list<item: utf8, nullable>", "inet[]", canonList(canonText), []string{"'{10.0.0.1,::1}'"}},
	{"a_enum", "mood[]", "list<item: utf8, nullable>", "value_for_value.mood[]", canonList(canonText), []string{`array['happy','so-so, "really"',null]::mood[]`}},
	{"a_composite", "pair[]", "list<item: utf8, nullable>", "value_for_value.pair[]", canonList(canonText), []string{"array[row(1,'a,b')::pair,null]"}},
}

// createTypes makes the table of all types in a schema of the test's own.
func createTypes(t *testing.T, pg *testpg.Server, schema string) {
	t.Helper()
	rows := 0
	var columns []string
	for _, c := range typeCases {
		rows = max(rows, len(c.values))
		columns = append(columns, c.name+" "+c.sql)
	}
	var sql strings.Builder
	fmt.Fprintf(&sql, "create schema %s authorization report; set search_path = %[1]s;\n", schema)
	sql.WriteString("create type mood as enum ('happy', 'so-so, \"really\"'); create domain posint as int check (value > 0);\n")
	sql.WriteString("create domain price as numeric(12,4); create type pair as (a int, b text);\n")
	fmt.Fprintf(&sql, "create table everything (row_no int primary key, %s); grant select on everything to report;\n", strings.Join(columns, ", "))
	sql.WriteString("insert into everything (row_no) values (0);\n")
	for i := range rows {
		values := []string{fmt.Sprint(i + 1)}
		for _, c := range typeCases {
			if i < len(c.values) {
				values = append(values, c.values[i])
			} else {
				values = append(values, "null")
			}
		}
		fmt.Fprintf(&sql, "insert into everything values (%s);\n", strings.Join(values, ", "))
	}
	pg.Exec(t, sql.String())
	t.Cleanup(func() { pg.Exec(t, "drop schema "+schema+" cascade") })
}

// psqlNull is what psql prints for a null here; no value of a test is it.
const psqlNull = "∅ null"

// psql runs a query with psql, as the data source's user, and returns its rows with
// dates in ISO form, intervals in ISO 8601 and UTC as the session's time zone.
func psql(t *testing.T, pg *testpg.Server, sql string) [][]string {
	t.Helper()
	cmd := exec.Command("psql", "-X", "-t", "--csv", "-P", "null="+psqlNull, "-h", pg.Host, "-p", fmt.Sprint(pg.Port), "-U", pg.User, "-d", pg.Database, "-c", sql)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+pg.Password, "PGCLIENTENCODING=UTF8",
		"PGOPTIONS=-c timezone=UTC -c datestyle=ISO -c intervalstyle=iso_8601 -c bytea_output=hex -c extra_float_digits=1")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("psql: %v\n%s", err, errOut.String())
	}
	var rows [][]string
	for _, cells := range parseCSV(t, out) {
		row := make([]string, len(cells))
		for i, cell := range cells {
			row[i] = cell.text
		}
		rows = append(rows, row)
	}
	return rows
}

// TestEveryTypeValueForValue compares a table of all types, as it comes through the
// gateway in three formats, with what psql prints straight from the server.
func TestEveryTypeValueForValue(t *testing.T) {
	busy.take(t)
	c := sharedCorp(t)
	createTypes(t, c.PG, "value_for_value")
	var names []string
	for _, tc := range typeCases {
		names = append(names, tc.name)
	}
	sql := "select " + strings.Join(names, ", ") + " from value_for_value.everything order by row_no"
	want := expected(t, psql(t, c.PG, sql))

	t.Run("csv", func(t *testing.T) {
		c := c.on(t)
		cells := parseCSV(t, c.fetch(mediaCSV, sql))
		compare(t, len(cells)-1, want, func(row, col int) any { return typeCases[col].canon.fromCell(cells[row+1][col]) })
	})
	t.Run("json", func(t *testing.T) {
		c := c.on(t)
		res := readJSON(t, c.fetch(mediaJSON, sql))
		compare(t, len(res.Rows), want, func(row, col int) any { return typeCases[col].canon.tidy(res.Rows[row][col]) })
	})
	t.Run("arrow", func(t *testing.T) {
		c := c.on(t)
		schema, batches, err := readArrow(bytes.NewReader(c.fetch(mediaArrow, sql)))
		if err != nil {
			t.Fatal(err)
		}
		checkFields(t, schema)
		var rows [][]any
		for _, b := range batches {
			for r := range int(b.NumRows()) {
				var row []any
				for col := range typeCases {
					row = append(row, typeCases[col].canon.tidy(arrowValue(t, b.Column(col), r)))
				}
				rows = append(rows, row)
			}
		}
		compare(t, len(rows), want, func(row, col int) any { return rows[row][col] })
	})
}

// expected turns what psql printed into the documented forms.
func expected(t *testing.T, rows [][]string) [][]any {
	t.Helper()
	out := make([][]any, len(rows))
	for r, row := range rows {
		for col, text := range row {
			if text == psqlNull {
				out[r] = append(out[r], nil)
			} else {
				out[r] = append(out[r], typeCases[col].canon.fromPSQL(t, text))
			}
		}
	}
	return out
}

func compare(t *testing.T, rows int, want [][]any, got func(row, col int) any) {
	t.Helper()
	if rows != len(want) || rows < 9 {
		t.Fatalf("%d rows, psql printed %d", rows, len(want))
	}
	for r := range want {
		for col := range typeCases {
			if diff := cmp.Diff(want[r][col], got(r, col)); diff != "" {
				t.Errorf("%s (%s), row %d: psql -, gateway +\n%s", typeCases[col].name, typeCases[col].sql, r, diff)
			}
		}
	}
}

func checkFields(t *testing.T, schema *arrow.Schema) {
	t.Helper()
	for i, tc := range typeCases {
		f := schema.Field(i)
		if f.Name != tc.name || f.Type.String() != tc.arrow || !f.Nullable {
			t.Errorf("field %d is %v, want a nullable %s: %s", i, f, tc.name, tc.arrow)
		}
		if pg, _ := f.Metadata.GetValue("postgres.type"); pg != tc.pg {
			t.Errorf("%s: the metadata names %q, want %q", tc.name, pg, tc.pg)
		}
		if why, ok := f.Metadata.GetValue("postgres.text"); ok {
			t.Errorf("%s came as text: %s", tc.name, why)
		}
	}
}

// TestValuesThatArrowLacks checks that a value without a counterpart makes its column
// text, exactly as psql prints it, and that the field says why.
func TestValuesThatArrowLacks(t *testing.T) {
	busy.take(t)
	c := sharedCorp(t)
	for name, value := range map[string]string{
		"nan":        "'NaN'::numeric(10,2)",
		"date":       "'infinity'::date",
		"timestamp":  "'-infinity'::timestamp",
		"late":       "'294276-12-31 23:59:59.999999'::timestamp",
		"midnight":   "'24:00:00'::time",
		"dimensions": "'{{1,2},{3,4}}'::int[]",
		"bounds":     "'[5:6]={1,2}'::int[]",
	} {
		t.Run(name, func(t *testing.T) {
			c := c.on(t)
			sql := "select " + value + " as v"
			schema, batches, err := readArrow(bytes.NewReader(c.fetch(mediaArrow, sql)))
			if err != nil {
				t.Fatal(err)
			}
			if why, ok := schema.Field(0).Metadata.GetValue("postgres.text"); !ok || why == "" || schema.Field(0).Type.ID() != arrow.STRING {
				t.Errorf("the field does not say why it is text: %v", schema.Field(0))
			}
			if got, want := batches[0].Column(0).ValueStr(0), psql(t, c.PG, sql)[0][0]; got != want {
				t.Errorf("got %q, psql prints %q", got, want)
			}
		})
	}
}

// TestALateValueThatArrowLacks ends a result that has begun in an error that names the
// column, and gives the column as text the next time.
func TestALateValueThatArrowLacks(t *testing.T) {
	busy.take(t)
	c := sharedCorp(t)
	sql := "select case when i < 400000 then i::numeric(10,2) else 'NaN' end::numeric(10,2) as amount from generate_series(1,400000) i"
	wantFailure(t, c.query(sql), 1, "amount", "NaN")
	again := c.query(sql)
	if again.Exit != 0 || !strings.HasSuffix(again.Out, "399999.00\r\nNaN\r\n") {
		t.Errorf("the second run: exit status %d, the end %q\n%s", again.Exit, again.Out[max(0, len(again.Out)-40):], again.Err)
	}
}

// csvCell is a cell of a CSV document: a null is empty and not quoted.
type csvCell struct {
	text   string
	quoted bool
}

// parseCSV reads RFC 4180, with either end of lines. Unlike encoding/csv it keeps which
// cells were quoted, and a carriage return inside one.
func parseCSV(t *testing.T, doc []byte) [][]csvCell {
	t.Helper()
	var rows [][]csvCell
	row := []csvCell{}
	for s := string(doc); s != ""; {
		var cell csvCell
		if strings.HasPrefix(s, `"`) {
			cell.quoted = true
			for s = s[1:]; ; s = s[2:] {
				end := strings.IndexByte(s, '"')
				if end < 0 {
					t.Fatal("CSV: a quote is open at the end")
				}
				cell.text, s = cell.text+s[:end], s[end:]
				if !strings.HasPrefix(s, `""`) {
					s = s[1:]
					break
				}
				cell.text += `"`
			}
		} else {
			end := strings.IndexAny(s, ",\r\n")
			if end < 0 {
				t.Fatal("CSV: the last line does not end")
			}
			cell.text, s = s[:end], s[end:]
		}
		row = append(row, cell)
		switch {
		case strings.HasPrefix(s, ","):
			s = s[1:]
		case strings.HasPrefix(s, "\r\n"):
			rows, row, s = append(rows, row), nil, s[2:]
		case strings.HasPrefix(s, "\n"):
			rows, row, s = append(rows, row), nil, s[1:]
		default:
			t.Fatalf("CSV: after a cell comes %.20q", s)
		}
	}
	return rows
}

// decodeJSON keeps numbers as they are written.
func decodeJSON(text string) (out any, err error) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	return out, d.Decode(&out)
}
