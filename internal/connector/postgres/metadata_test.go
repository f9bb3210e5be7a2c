package postgres

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/testpg"
)

const shop = `
create schema shop;
grant usage on schema shop to app;
create type shop.mood as enum ('ok');
create domain shop.cents as numeric(12,2);
create table shop.customer (id int primary key, name varchar(40) not null default 'x', mood shop.mood, tags text[], code text unique);
create table shop.orders (
	id bigint generated always as identity, part int, customer int references shop.customer on update cascade on delete set null,
	total shop.cents check (total >= 0), double_total numeric generated always as (total * 2) stored, dropped int,
	constraint orders_key primary key (part, id));
alter table shop.orders drop column dropped;
comment on column shop.orders.part is 'the partition';
create table shop.item (order_id bigint, order_part int, n int, constraint item_order foreign key (order_part, order_id) references shop.orders (part, id));
create view shop.totals as select customer, sum(total) from shop.orders group by 1;
create materialized view shop.mat as select 1 as one;
create table shop."Odd ""name" ("a b" int);
grant select on all tables in schema shop to app;
`

func readAll(t *testing.T, r array.RecordReader, err error) []arrow.RecordBatch {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	var recs []arrow.RecordBatch
	for r.Next() {
		r.RecordBatch().Retain()
		recs = append(recs, r.RecordBatch())
	}
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	return recs
}

// lines writes each row as its values with spaces between.
func lines(recs ...arrow.RecordBatch) []string {
	var out []string
	for _, rec := range recs {
		for i := range int(rec.NumRows()) {
			var v []string
			for c := range int(rec.NumCols()) {
				v = append(v, rec.Column(c).ValueStr(i))
			}
			out = append(out, strings.Join(v, " "))
		}
	}
	return out
}

func TestTables(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	s.Exec(t, shop)
	db := openSource(t, s)
	ctx := testContext(t)
	d := s.Database
	for _, c := range []struct {
		name string
		req  memberapi.MetadataRequest
		want []string
	}{
		{"all", memberapi.MetadataRequest{}, []string{
			d + " shop mat MATERIALIZED VIEW", d + ` shop Odd "name TABLE`, d + " shop customer TABLE", d + " shop item TABLE", d + " shop orders TABLE", d + " shop totals VIEW"}},
		{"by pattern", memberapi.MetadataRequest{Catalog: &d, SchemaPattern: new("sh%"), TablePattern: new("o_ders")}, []string{d + " shop orders TABLE"}},
		{"by type", memberapi.MetadataRequest{TableTypes: []string{"VIEW", "MATERIALIZED VIEW"}}, []string{d + " shop mat MATERIALIZED VIEW", d + " shop totals VIEW"}},
		{"other catalog", memberapi.MetadataRequest{Catalog: new("other")}, nil},
		{"system", memberapi.MetadataRequest{SchemaPattern: new("pg_catalog"), TablePattern: new("pg_type")}, []string{d + " pg_catalog pg_type TABLE"}},
	} {
		r, err := db.Tables(ctx, c.req)
		got := lines(readAll(t, r, err)...)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
	r, err := db.Tables(ctx, memberapi.MetadataRequest{IncludeSchema: true, SchemaPattern: new("shop")})
	recs := readAll(t, r, err)
	cnxn, err := db.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int(recs[0].NumRows()) {
		table := recs[0].Column(2).ValueStr(i)
		ir, err := ipc.NewReader(bytes.NewReader(recs[0].Column(4).(*array.Binary).Value(i)))
		if err != nil {
			t.Fatal(err)
		}
		// The schema listed is the one that a query gives, but for what is known of nulls.
		want, err := cnxn.GetTableSchema(ctx, nil, new("shop"), table)
		if err != nil {
			t.Fatal(err)
		}
		nullable := func(s *arrow.Schema) *arrow.Schema {
			fields := s.Fields()
			for i := range fields {
				fields[i].Nullable = true
			}
			return arrow.NewSchema(fields, nil)
		}
		if !nullable(ir.Schema()).Equal(want) {
			t.Errorf("%s: %v, want %v", table, ir.Schema(), want)
		}
		if table == "customer" && (ir.Schema().Field(1).Nullable || !ir.Schema().Field(2).Nullable) {
			t.Errorf("nullability of %v", ir.Schema())
		}
		ir.Release()
	}
	if _, err := cnxn.GetTableSchema(ctx, new("other"), nil, "x"); err == nil {
		t.Error("a table of another catalog")
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	s.Exec(t, shop)
	db := openSource(t, s)
	ctx := testContext(t)
	d := s.Database
	orders := memberapi.TableRef{Catalog: &d, Schema: new("shop"), Table: "orders"}
	pk, err := db.PrimaryKeys(ctx, orders)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{d + " shop orders part 1 orders_key", d + " shop orders id 2 orders_key"}, lines(pk)); diff != "" {
		t.Error(diff)
	}
	toOrders := []string{
		fmt.Sprintf("%s shop orders part %s shop item order_part 1 item_order orders_key 3 3", d, d),
		fmt.Sprintf("%s shop orders id %s shop item order_id 2 item_order orders_key 3 3", d, d),
	}
	toCustomer := []string{fmt.Sprintf("%s shop customer id %s shop orders customer 1 orders_customer_fkey customer_pkey 0 2", d, d)}
	for _, c := range []struct {
		pk, fk *memberapi.TableRef
		want   []string
	}{
		{&orders, nil, toOrders},
		{nil, &orders, toCustomer},
		{&orders, &memberapi.TableRef{Table: "item"}, toOrders},
		{&orders, &memberapi.TableRef{Table: "customer"}, nil},
		{nil, nil, append(toCustomer, toOrders...)},
	} {
		rec, err := db.ForeignKeys(ctx, c.pk, c.fk)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, lines(rec)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestGetObjects(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	s.Exec(t, shop)
	db := openSource(t, s)
	ctx := testContext(t)
	cnxn, err := db.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	get := func(depth adbc.ObjectDepth, catalog, schema, table, column *string) string {
		t.Helper()
		r, err := cnxn.GetObjects(ctx, depth, catalog, schema, table, column, nil)
		return strings.Join(lines(readAll(t, r, err)...), "\n")
	}
	if got := get(adbc.ObjectDepthCatalogs, nil, nil, nil, nil); got != s.Database+" (null)" {
		t.Error(got)
	}
	if got := get(adbc.ObjectDepthCatalogs, new("other"), nil, nil, nil); got != "" {
		t.Error(got)
	}
	if got, want := get(adbc.ObjectDepthDBSchemas, nil, new("shop"), nil, nil), s.Database+` [{"db_schema_name":"shop","db_schema_tables":null}]`; got != want {
		t.Error(got)
	}
	got := get(adbc.ObjectDepthTables, nil, new("shop"), new("o%"), nil)
	if !strings.Contains(got, `{"table_columns":null,"table_constraints":null,"table_name":"orders","table_type":"TABLE"}`) || strings.Contains(got, "customer") {
		t.Error(got)
	}
	got = get(adbc.ObjectDepthAll, nil, new("shop"), new("orders"), nil)
	for _, want := range []string{
		`"column_name":"part","ordinal_position":2,"remarks":"the partition"`,
		`{"constraint_column_names":["part","id"],"constraint_column_usage":null,"constraint_name":"orders_key","constraint_type":"PRIMARY KEY"}`,
		`"fk_catalog":"` + s.Database + `","fk_column_name":"id","fk_db_schema":"shop","fk_table":"customer"`,
		`"constraint_type":"CHECK"`, `"xdbc_is_autoincrement":true`, `"xdbc_is_generatedcolumn":true`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	if strings.Contains(got, "dropped") {
		t.Error("a dropped column is listed")
	}
	if got = get(adbc.ObjectDepthAll, nil, new("shop"), new("orders"), new("tot%")); strings.Contains(got, `"column_name":"part"`) || !strings.Contains(got, `"column_name":"total"`) {
		t.Errorf("column filter: %s", got)
	}
}

func TestInfo(t *testing.T) {
	t.Parallel()
	db := openSource(t, testpg.Shared(t))
	ctx := testContext(t)
	cnxn, err := db.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	info, err := adbc.GetDriverInfo(ctx, cnxn)
	if err != nil || info.VendorName != "PostgreSQL" || !strings.HasPrefix(info.VendorVersion, "15.") || info.DriverADBCVersion != adbc.AdbcVersion1_1_0 {
		t.Errorf("%+v %v", info, err)
	}
	r, err := cnxn.GetInfo(ctx, []adbc.InfoCode{adbc.InfoVendorName, 9999})
	if got := lines(readAll(t, r, err)...); len(got) != 1 {
		t.Errorf("%v", got)
	}
	r, err = cnxn.GetTableTypes(ctx)
	if diff := cmp.Diff([]string{"TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE"}, lines(readAll(t, r, err)...)); diff != "" {
		t.Error(diff)
	}
	all, err := db.TypeInfo(ctx, nil)
	if err != nil || all.NumRows() != int64(len(xdbcTypes)) {
		t.Fatalf("%v %v", all, err)
	}
	code := int32(xdbcBigint)
	one, err := db.TypeInfo(ctx, &code)
	if err != nil || one.NumRows() != 1 || one.Column(0).ValueStr(0) != "int8" {
		t.Errorf("%v %v", one, err)
	}
	for i := range int(all.NumRows()) {
		if name := all.Column(0).ValueStr(i); queryValue(t, db, "select to_regtype('"+name+"')::text is not null") != "t" {
			t.Errorf("PostgreSQL has no type %s", name)
		}
	}
}

func TestNotOffered(t *testing.T) {
	t.Parallel()
	db := openSource(t, testpg.Shared(t))
	ctx := context.Background()
	cnxn, _ := db.Open(ctx)
	st := newStatement(t, db, "select 1")
	_, _, _, partitions := st.ExecutePartitions(ctx)
	for i, err := range []error{
		cnxn.Commit(ctx), cnxn.Rollback(ctx), st.SetSubstraitPlan(nil), st.SetOption("a", "b"), partitions, db.SetOptions(map[string]string{"a": "b"}),
	} {
		if err == nil {
			t.Errorf("%d: accepted", i)
		}
	}
}
