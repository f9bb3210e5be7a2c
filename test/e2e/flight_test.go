package e2e

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-adbc/go/adbc"
	driver "github.com/apache/arrow-adbc/go/adbc/driver/flightsql"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sluice-gateway/sluice/test/e2e/stack"
)

// shopSchema is what the tests of metadata look at; the schema is their own.
const shopSchema = `
create schema shop authorization report;
set role report;
create table shop.customers (id int primary key, name varchar(40) not null, since date);
create table shop.orders (
	customer int not null references shop.customers (id), no int, amount numeric(10,2), notes text[],
	primary key (customer, no));
create view shop.big as select * from shop.orders where amount > 1000;
insert into shop.customers select i, 'customer ' || i, date '2026-01-01' + i from generate_series(1, 100) i;
insert into shop.orders select 1 + i % 100, i, i * 1.25, array['n' || i, null] from generate_series(1, 1000) i;`

// connectADBC connects with the Apache project's ADBC driver.
func (c *corp) connectADBC(options map[string]string) (adbc.Connection, error) {
	all := map[string]string{
		adbc.OptionKeyURI:                                  "grpc+tcp://" + c.Flight,
		driver.OptionAuthorizationHeader:                   "Bearer " + c.Token(),
		driver.OptionRPCCallHeaderPrefix + "sluice-source": source,
	}
	for k, v := range options {
		all[k] = v
		if v == "" {
			delete(all, k)
		}
	}
	db, err := driver.NewDriver(memory.DefaultAllocator).NewDatabase(all)
	if err != nil {
		return nil, err
	}
	c.t.Cleanup(func() { db.Close() })
	cnxn, err := db.Open(context.Background())
	if err != nil {
		return nil, err
	}
	c.t.Cleanup(func() { cnxn.Close() })
	return cnxn, nil
}

// adbcShared is the shared installation, with the shop's tables, and a connection to it.
func adbcShared(t *testing.T, schema string) (*corp, adbc.Connection) {
	t.Helper()
	c := sharedCorp(t)
	c.PG.Exec(t, strings.ReplaceAll(shopSchema, "shop", schema))
	t.Cleanup(func() { c.PG.Exec(t, "drop schema "+schema+" cascade") })
	cnxn, err := c.connectADBC(nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, cnxn
}

// run executes a statement and returns its rows as text, with its schema.
func run(t *testing.T, cnxn adbc.Connection, sql string) ([][]string, *arrow.Schema, error) {
	t.Helper()
	st := newStatement(t, cnxn, sql)
	rd, _, err := st.ExecuteQuery(t.Context())
	if err != nil {
		return nil, nil, err
	}
	rows, err := texts(rd)
	return rows, rd.Schema(), err
}

func newStatement(t *testing.T, cnxn adbc.Connection, sql string) adbc.Statement {
	t.Helper()
	st, err := cnxn.NewStatement()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	if err := st.SetSqlQuery(sql); err != nil {
		t.Fatal(err)
	}
	return st
}

// texts reads a result to its end.
func texts(rd array.RecordReader) ([][]string, error) {
	defer rd.Release()
	var rows [][]string
	for rd.Next() {
		b := rd.RecordBatch()
		for r := range int(b.NumRows()) {
			var row []string
			for _, col := range b.Columns() {
				row = append(row, col.ValueStr(r))
			}
			rows = append(rows, row)
		}
	}
	return rows, rd.Err()
}

func TestFlightStatements(t *testing.T) {
	busy.take(t)
	c, cnxn := adbcShared(t, "shop_statements")
	rows, schema, err := run(t, cnxn, "select no, amount, notes from shop_statements.orders order by no limit 2")
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(rows); got != `[[1 1.25 ["n1",null]] [2 2.5 ["n2",null]]]` {
		t.Errorf("rows: %s", got)
	}
	if got := schema.Field(1).Type.String(); got != "decimal(10, 2)" {
		t.Errorf("amount is %s", got)
	}
	many, _, err := run(t, cnxn, "select i from generate_series(1, 300000) i")
	if err != nil || len(many) != 300000 || many[299999][0] != "300000" {
		t.Errorf("%d rows, %v", len(many), err)
	}
	for sql, text := range map[string]string{"selct 1": "syntax error", "select 1/0": "division by zero", breaking: "division by zero"} {
		_, _, err := run(t, cnxn, sql)
		var e adbc.Error
		if !errors.As(err, &e) || !strings.Contains(e.Msg, text) {
			t.Errorf("%s: %v, want %q", sql, err, text)
		}
	}
	if _, err := newStatement(t, cnxn, "delete from shop_statements.orders").ExecuteUpdate(t.Context()); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("an update on a read-only source: %v", err)
	}
	if rec := lastFailure(t, c, "read-only"); rec.Member == "" || rec.Address == "" {
		t.Errorf("the query log: %+v", rec)
	}
}

func TestFlightPreparedStatements(t *testing.T) {
	busy.take(t)
	_, cnxn := adbcShared(t, "shop_prepared")
	st := newStatement(t, cnxn, "select no, amount from shop_prepared.orders where customer = $1 and amount > $2 order by no")
	if err := st.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	params, err := st.GetParameterSchema()
	if err != nil || params.NumFields() != 2 || params.Field(0).Type.ID() != arrow.INT32 {
		t.Fatalf("parameters: %v, %v", params, err)
	}
	bound := arrow.NewSchema([]arrow.Field{
		{Name: "customer", Type: arrow.PrimitiveTypes.Int32, Nullable: true}, {Name: "amount", Type: arrow.BinaryTypes.String, Nullable: true},
	}, nil)
	bind := func(doc string) [][]string {
		t.Helper()
		rec, _, err := array.RecordFromJSON(memory.DefaultAllocator, bound, strings.NewReader(doc))
		if err != nil {
			t.Fatal(err)
		}
		defer rec.Release()
		if err := st.Bind(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		rd, _, err := st.ExecuteQuery(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		rows, err := texts(rd)
		if err != nil {
			t.Fatal(err)
		}
		return rows
	}
	// Customer 6 has the orders 5, 105, … 905; order 905 is the only one above 1100.
	if got := fmt.Sprint(bind(`[{"customer":6,"amount":"1100"}]`)); got != "[[905 1131.25]]" {
		t.Errorf("one row of parameters: %s", got)
	}
	if got := fmt.Sprint(bind(`[{"customer":6,"amount":"1100"},{"customer":7,"amount":"1100"},{"customer":null,"amount":"0"}]`)); got != "[[905 1131.25] [906 1132.5]]" {
		t.Errorf("three rows of parameters: %s", got)
	}
	if got := bind(`[{"customer":6,"amount":"99999"}]`); len(got) != 0 {
		t.Errorf("parameters that match nothing: %v", got)
	}
}

func TestFlightMetadata(t *testing.T) {
	busy.take(t)
	_, cnxn := adbcShared(t, "shop_metadata")
	schema, catalog := "shop_metadata", source
	objects := func(depth adbc.ObjectDepth) string {
		t.Helper()
		rd, err := cnxn.GetObjects(t.Context(), depth, nil, &schema, nil, nil, nil)
		if err != nil {
			t.Fatalf("depth %d: %v", depth, err)
		}
		defer rd.Release()
		var doc strings.Builder
		for rd.Next() {
			part, err := rd.RecordBatch().MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			doc.Write(part)
		}
		if rd.Err() != nil {
			t.Fatalf("depth %d: %v", depth, rd.Err())
		}
		return doc.String()
	}
	for _, tc := range []struct {
		depth    adbc.ObjectDepth
		has, not []string
	}{
		{adbc.ObjectDepthCatalogs, []string{catalog}, []string{"shop_metadata"}},
		{adbc.ObjectDepthDBSchemas, []string{catalog, "shop_metadata"}, []string{"customers"}},
		{adbc.ObjectDepthTables, []string{"shop_metadata", "customers", "orders", "big"}, []string{"since"}},
		{adbc.ObjectDepthColumns, []string{"customers", "since", "amount", "notes"}, nil},
	} {
		doc := objects(tc.depth)
		for _, text := range tc.has {
			if !strings.Contains(doc, `"`+text+`"`) {
				t.Errorf("depth %d lacks %s:\n%s", tc.depth, text, doc)
			}
		}
		for _, text := range tc.not {
			if strings.Contains(doc, `"`+text+`"`) {
				t.Errorf("depth %d has %s:\n%s", tc.depth, text, doc)
			}
		}
	}
	table, err := cnxn.GetTableSchema(t.Context(), nil, &schema, "orders")
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(table.Field(0).Type, " ", table.Field(2).Type, " ", table.Field(3).Type.ID()); got != "int32 decimal(10, 2) LIST" {
		t.Errorf("the table's schema: %s", got)
	}
	if _, err := cnxn.GetTableSchema(t.Context(), nil, &schema, "nothing"); err == nil {
		t.Error("a table that does not exist has a schema")
	}
	types, err := cnxn.GetTableTypes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kinds, err := texts(types)
	if err != nil || !slices.ContainsFunc(kinds, func(k []string) bool { return strings.EqualFold(k[0], "view") }) {
		t.Errorf("table types: %v, %v", kinds, err)
	}
	info, err := cnxn.GetInfo(t.Context(), []adbc.InfoCode{adbc.InfoVendorName, adbc.InfoVendorVersion, adbc.InfoDriverName})
	if err != nil {
		t.Fatal(err)
	}
	if rows, err := texts(info); err != nil || !strings.Contains(fmt.Sprint(rows), "Sluice") {
		t.Errorf("info: %v, %v", rows, err)
	}
}

// flightClient is arrow-go's own client, and a context with its headers.
func (c *corp) flightClient(headers ...string) (*flightsql.Client, context.Context) {
	c.t.Helper()
	cl, err := flightsql.NewClient(c.Flight, nil, nil, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { cl.Close() })
	if len(headers) == 0 {
		headers = []string{"authorization", "Bearer " + c.Token(), "sluice-source", source}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	c.t.Cleanup(cancel)
	return cl, metadata.NewOutgoingContext(ctx, metadata.Pairs(headers...))
}

func TestFlightKeys(t *testing.T) {
	busy.take(t)
	c, _ := adbcShared(t, "shop_keys")
	cl, ctx := c.flightClient()
	schema := "shop_keys"
	read := func(info *flight.FlightInfo, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		rd, err := cl.DoGet(ctx, info.Endpoint[0].Ticket)
		if err != nil {
			t.Fatal(err)
		}
		rows, err := texts(rd)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(rows)
	}
	ref := flightsql.TableRef{DBSchema: &schema, Table: "orders"}
	primary := read(cl.GetPrimaryKeys(ctx, ref))
	if !strings.Contains(primary, "shop_keys orders customer 1") || !strings.Contains(primary, "shop_keys orders no 2") {
		t.Errorf("primary keys: %s", primary)
	}
	imported := read(cl.GetImportedKeys(ctx, ref))
	for _, text := range []string{"shop_keys customers id", "shop_keys orders customer"} {
		if !strings.Contains(imported, text) {
			t.Errorf("imported keys lack %q: %s", text, imported)
		}
	}
	exported := read(cl.GetExportedKeys(ctx, flightsql.TableRef{DBSchema: &schema, Table: "customers"}))
	if exported != imported {
		t.Errorf("exported keys %s, imported %s", exported, imported)
	}
	if types := read(cl.GetXdbcTypeInfo(ctx, nil)); !strings.Contains(types, "timestamptz") || !strings.Contains(types, "numeric") {
		t.Errorf("type information: %s", types)
	}
}

func TestFlightCancel(t *testing.T) {
	busy.take(t)
	c := sharedCorp(t)
	cl, ctx := c.flightClient()
	t.Run("by the client's context", func(t *testing.T) {
		c := c.on(t)
		const mark = "flight context"
		run, cancel := context.WithCancel(ctx)
		defer cancel()
		info, err := cl.Execute(run, slowRows(mark))
		if err != nil {
			t.Fatal(err)
		}
		rd, err := cl.DoGet(run, info.Endpoint[0].Ticket)
		if err != nil || !rd.Next() {
			t.Fatalf("no rows: %v", err)
		}
		defer rd.Release()
		cancel()
		for rd.Next() {
		}
		if rd.Err() == nil {
			t.Error("the cancelled result looks whole")
		}
		wantGone(t, c, mark)
		wantRecord(t, c, mark, "cancelled")
	})
	t.Run("by CancelFlightInfo", func(t *testing.T) {
		c := c.on(t)
		const mark = "flight cancel info"
		info, err := cl.Execute(ctx, slowRows(mark))
		if err != nil {
			t.Fatal(err)
		}
		rd, err := cl.DoGet(ctx, info.Endpoint[0].Ticket)
		if err != nil || !rd.Next() {
			t.Fatalf("no rows: %v", err)
		}
		defer rd.Release()
		res, err := cl.CancelFlightInfo(ctx, &flight.CancelFlightInfoRequest{Info: info})
		if err != nil || res.Status != flight.CancelStatusCancelled {
			t.Errorf("cancel: %v, %v", res, err)
		}
		for rd.Next() {
		}
		if status.Code(rd.Err()) != codes.Canceled {
			t.Errorf("the cancelled result ended with %v", rd.Err())
		}
		wantGone(t, c, mark)
		wantRecord(t, c, mark, "cancelled")
	})
}

func TestFlightSignIn(t *testing.T) {
	busy.take(t)
	c := newCorp(t) // bad tokens slow their sender down: not on the shared one
	auth := driver.OptionAuthorizationHeader
	basic := func(password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte("anyone:"+password))
	}
	good := map[string]map[string]string{"bearer": nil, "basic": {auth: basic(c.Token())}}
	bad := map[string]map[string]string{"wrong bearer": {auth: "Bearer sluice_wrong"}, "wrong basic": {auth: basic("wrong")}, "nothing": {auth: ""}}
	if !stack.Race { // with these, the driver reads trailers too early: a race of its own
		good["handshake"] = map[string]string{auth: "", adbc.OptionKeyUsername: "anyone", adbc.OptionKeyPassword: c.Token()}
		bad["wrong handshake"] = map[string]string{auth: "", adbc.OptionKeyUsername: "anyone", adbc.OptionKeyPassword: "wrong"}
	}
	for name, options := range good {
		cnxn, err := c.connectADBC(options)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if rows, _, err := run(t, cnxn, "select 3"); err != nil || fmt.Sprint(rows) != "[[3]]" {
			t.Errorf("%s: %v, %v", name, rows, err)
		}
	}
	for name, options := range bad {
		cnxn, err := c.connectADBC(options)
		if err == nil {
			_, _, err = run(t, cnxn, "select 3")
		}
		var e adbc.Error
		if !errors.As(err, &e) || e.Code != adbc.StatusUnauthenticated {
			t.Errorf("%s: %v, want unauthenticated", name, err)
		}
	}
	for _, r := range c.records() {
		if r.State != "succeeded" {
			t.Errorf("a refused call left a record: %+v", r)
		}
	}
}

func TestFlightSource(t *testing.T) {
	busy.take(t)
	c := sharedCorp(t)
	header := driver.OptionRPCCallHeaderPrefix + "sluice-source"
	wantError := func(options map[string]string, code adbc.Status, text string) {
		t.Helper()
		cnxn, err := c.connectADBC(options)
		if err == nil {
			_, _, err = run(t, cnxn, "select 1")
		}
		var e adbc.Error
		if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Msg, text) {
			t.Errorf("%v: %v, want %v and %q", options, err, code, text)
		}
	}
	wantError(map[string]string{header: ""}, adbc.StatusInvalidArgument, "names no data source")
	wantError(map[string]string{header: "nowhere"}, adbc.StatusNotFound, "DataSource/nowhere does not exist")

	cnxn, err := c.connectADBC(map[string]string{header: "", driver.OptionCookieMiddleware: adbc.OptionValueEnabled})
	if err != nil {
		t.Fatal(err)
	}
	session := cnxn.(adbc.GetSetOptions)
	if err := session.SetOption(adbc.OptionKeyCurrentCatalog, "nowhere"); err == nil {
		t.Error("the catalog can be set to a source that does not exist")
	}
	if err := session.SetOption(adbc.OptionKeyCurrentCatalog, source); err != nil {
		t.Fatal(err)
	}
	if rows, _, err := run(t, cnxn, "select current_database()"); err != nil || fmt.Sprint(rows) != "[[orders]]" {
		t.Errorf("by catalog: %v, %v", rows, err)
	}
}
