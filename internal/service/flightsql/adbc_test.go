package flightsql

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow-adbc/go/adbc"
	driver "github.com/apache/arrow-adbc/go/adbc/driver/flightsql"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql/schema_ref"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/service"
	"github.com/sluice-gateway/sluice/internal/service/frontendtest"
)

func TestQuery(t *testing.T) {
	front := frontendtest.New()
	results := map[string][]byte{
		"numbers": frontendtest.Numbers(20, 5000), "no rows": frontendtest.Numbers(0, 0),
		"types": manyTypes(t), "zstd": manyTypes(t, ipc.WithZstd()),
	}
	for sql, stream := range results {
		front.On(sql, frontendtest.Whole(stream))
	}
	_, addr := serve(t, front, nil)
	cnxn := connect(t, addr, source("orders"))
	for sql, stream := range results {
		if err := query(t, cnxn, sql, stream); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	if q := front.Queries(); len(q) != len(results) || q[0].Source != "orders" || q[0].Update || q[0].Params != nil {
		t.Errorf("the service was asked %+v", q)
	}
}

func TestInfoAsksNobody(t *testing.T) {
	front := frontendtest.New()
	_, addr := serve(t, front, nil)
	c := client(t, addr)
	if _, err := c.Execute(outgoing(t), "select"); err != nil {
		t.Fatal(err)
	}
	if len(front.Queries())+front.Prepares() != 0 {
		t.Error("GetFlightInfo reached the member")
	}
}

func TestQueryErrors(t *testing.T) {
	front := frontendtest.New()
	died := errs.New(errs.Source, "the server closed the connection").WithStep(errs.StepStream).WithHint("look at its log")
	front.On("breaks", frontendtest.BreaksOff(20, 1000, died))
	late := frontendtest.Whole(frontendtest.Numbers(2, 100))
	late.Then = died // after the end-of-stream marker
	front.On("late", late)
	_, addr := serve(t, front, nil)
	orders, other := connect(t, addr, source("orders")), connect(t, addr, source("nowhere"))
	none := connect(t, addr, nil)
	for _, c := range []struct {
		name string
		cnxn adbc.Connection
		sql  string
		code adbc.Status
		text string
	}{
		{"syntax error", orders, "selct", adbc.StatusUnknown, "syntax error"},
		{"breaks off", orders, "breaks", adbc.StatusUnknown, "hint: look at its log"},
		{"breaks off after the marker", orders, "late", adbc.StatusUnknown, "closed the connection"},
		{"unknown source", other, "numbers", adbc.StatusNotFound, "DataSource/nowhere does not exist"},
		{"no source", none, "numbers", adbc.StatusInvalidArgument, HeaderSource},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := count(t, c.cnxn, c.sql)
			var e adbc.Error
			if !errors.As(err, &e) || e.Code != c.code || !strings.Contains(e.Msg, c.text) {
				t.Errorf("%v, want code %v and %q", err, c.code, c.text)
			}
		})
	}
	for id, err := range front.Finished() {
		if err == nil {
			t.Errorf("%s finished as a success", id)
		}
	}
}

func TestPrepared(t *testing.T) {
	front := frontendtest.New()
	stream := frontendtest.Numbers(2, 10)
	params := arrow.NewSchema([]arrow.Field{{Name: "1", Type: arrow.PrimitiveTypes.Int64, Nullable: true}}, nil)
	dataset, _ := arrowipc.EncodeSchema(frontendtest.NumbersSchema())
	wanted, _ := arrowipc.EncodeSchema(params)
	answer := frontendtest.Whole(stream)
	answer.Prepared = memberapi.PrepareResponse{Dataset: dataset, Params: wanted}
	front.On("where n = $1", answer)
	front.On("delete", frontendtest.Answer{Head: counts(3, 4)})
	s, addr := serve(t, front, nil)
	cnxn := connect(t, addr, source("orders"))

	stmt := statementFor(t, cnxn, "where n = $1")
	if err := stmt.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if schema, err := stmt.GetParameterSchema(); err != nil || !schema.Equal(params) {
		t.Errorf("parameters %v, %v", schema, err)
	}
	rows, _, err := array.RecordFromJSON(memory.DefaultAllocator, params, strings.NewReader(`[{"1":7},{"1":null}]`))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := stmt.Bind(t.Context(), rows); err != nil {
			t.Fatal(err)
		}
		reader, _, err := stmt.ExecuteQuery(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := compare(reader, stream); err != nil {
			t.Error(err)
		}
		reader.Release()
	}
	in := front.Queries()[1]
	bound, err := ipc.NewReader(bytes.NewReader(in.Params))
	if err != nil || !bound.Next() || !array.RecordEqual(bound.RecordBatch(), rows) || bound.Next() || bound.Err() != nil {
		t.Errorf("the member got other parameters: %v", err)
	}

	update := statementFor(t, cnxn, "delete")
	if err := update.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := update.ExecuteUpdate(t.Context()); err != nil || n != 7 {
		t.Errorf("%d rows, %v", n, err)
	}
	if in := front.Queries()[2]; !in.Update || in.Params != nil || in.SQL != "delete" {
		t.Errorf("the service was asked %+v", in)
	}
	if err := update.Bind(t.Context(), rows); err != nil {
		t.Fatal(err)
	}
	if n, err := update.ExecuteUpdate(t.Context()); err != nil || n != 7 || front.Queries()[3].Params == nil {
		t.Errorf("with parameters: %d rows, %v", n, err)
	}
	for _, st := range []adbc.Statement{stmt, update} {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := s.prepared.len(); n != 0 {
		t.Errorf("%d statements are left", n)
	}
}

// counts is the answer to an update.
func counts(rows ...int64) []byte {
	schema := arrow.NewSchema([]arrow.Field{{Name: "rows", Type: arrow.PrimitiveTypes.Int64}}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	b.Field(0).(*array.Int64Builder).AppendValues(rows, nil)
	return frontendtest.Stream(schema, b.NewRecordBatch())
}

func TestUpdate(t *testing.T) {
	front := frontendtest.New()
	broken := frontendtest.Whole(counts(5))
	broken.Then = errs.New(errs.Unavailable, "the member is gone")
	for sql, a := range map[string]frontendtest.Answer{
		"one": frontendtest.Whole(counts(41)), "unknown": frontendtest.Whole(counts(3, -1, 2)), "broken": broken,
		"odd": frontendtest.Whole(frontendtest.Numbers(1, 1)),
	} {
		front.On(sql, a)
	}
	_, addr := serve(t, front, nil)
	cnxn := connect(t, addr, source("orders"))
	for sql, want := range map[string]int64{"one": 41, "unknown": -1} {
		if n, err := statementFor(t, cnxn, sql).ExecuteUpdate(t.Context()); err != nil || n != want {
			t.Errorf("%s: %d, %v", sql, n, err)
		}
	}
	for _, sql := range []string{"broken", "odd", "selct"} {
		if n, err := statementFor(t, cnxn, sql).ExecuteUpdate(t.Context()); err == nil {
			t.Errorf("%s: %d rows, no error", sql, n)
		}
	}
	failed := 0
	for _, err := range front.Finished() {
		if err != nil {
			failed++
		}
	}
	if failed != 3 {
		t.Errorf("%d queries are recorded as failed", failed)
	}
}

func TestAuthentication(t *testing.T) {
	front := frontendtest.New()
	front.On("numbers", frontendtest.Whole(frontendtest.Numbers(1, 1)))
	_, addr := serveLeaky(t, front, nil)
	for name, options := range map[string]map[string]string{
		"wrong password": {adbc.OptionKeyPassword: "wrong"},
		"nothing":        {adbc.OptionKeyPassword: "", adbc.OptionKeyUsername: ""},
		"wrong bearer":   {adbc.OptionKeyPassword: "", adbc.OptionKeyUsername: "", driver.OptionAuthorizationHeader: "Bearer wrong"},
	} {
		_, err := dial(t, addr, options)
		var e adbc.Error
		if err == nil { // without credentials, the driver first speaks at the first query
			cnxn := connect(t, addr, options)
			err = query(t, cnxn, "numbers", frontendtest.Numbers(1, 1))
		}
		if !errors.As(err, &e) || e.Code != adbc.StatusUnauthenticated {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(front.Users()) != 0 {
		t.Error("a call without a token reached the service")
	}
	bearer := source("orders")
	bearer[adbc.OptionKeyPassword], bearer[adbc.OptionKeyUsername] = "", ""
	bearer[driver.OptionAuthorizationHeader] = "Bearer " + frontendtest.OtherToken
	if err := query(t, connect(t, addr, bearer), "numbers", frontendtest.Numbers(1, 1)); err != nil {
		t.Error(err)
	}
	if u := front.Users(); len(u) != 1 || u[0] != "other" {
		t.Errorf("the query ran as %v", u)
	}
}

func TestSessionCatalog(t *testing.T) {
	front := frontendtest.New()
	front.Show("DataSource", service.View{Kind: "DataSource", Name: "orders"})
	front.On("numbers", frontendtest.Whole(frontendtest.Numbers(1, 1)))
	_, addr := serve(t, front, nil)
	cnxn := connect(t, addr, map[string]string{driver.OptionCookieMiddleware: adbc.OptionValueEnabled})
	options := cnxn.(adbc.GetSetOptions)
	if err := options.SetOption(adbc.OptionKeyCurrentCatalog, "nowhere"); err == nil {
		t.Error("a source that does not exist was taken")
	}
	if err := options.SetOption(driver.OptionSessionOptionPrefix+"colour", "red"); err == nil {
		t.Error("an unknown option was taken")
	}
	if err := options.SetOption(adbc.OptionKeyCurrentCatalog, "orders"); err != nil {
		t.Fatal(err)
	}
	if got, err := options.GetOption(adbc.OptionKeyCurrentCatalog); err != nil || got != "orders" {
		t.Errorf("catalog %q, %v", got, err)
	}
	if err := query(t, cnxn, "numbers", frontendtest.Numbers(1, 1)); err != nil {
		t.Error(err)
	}
	if err := options.SetOption(driver.OptionEraseSessionOptionPrefix+"catalog", ""); err != nil {
		t.Fatal(err)
	}
	if err := query(t, cnxn, "numbers", nil); err == nil {
		t.Error("the erased catalog is still in use")
	}
}

func TestMetadata(t *testing.T) {
	front := frontendtest.New()
	for kind, a := range map[string]struct {
		schema *arrow.Schema
		rows   string
	}{
		memberapi.MetaCatalogs:   {schema_ref.Catalogs, `[{"catalog_name":"orders"}]`},
		memberapi.MetaSchemas:    {schema_ref.DBSchemas, `[{"catalog_name":"orders","db_schema_name":"public"}]`},
		memberapi.MetaTables:     {schema_ref.Tables, `[{"catalog_name":"orders","db_schema_name":"public","table_name":"lineitem","table_type":"table"}]`},
		memberapi.MetaTableTypes: {schema_ref.TableTypes, `[{"table_type":"table"},{"table_type":"view"}]`},
	} {
		batch, _, err := array.RecordFromJSON(memory.DefaultAllocator, a.schema, strings.NewReader(a.rows))
		if err != nil {
			t.Fatal(err)
		}
		front.On("metadata:"+kind, frontendtest.Whole(frontendtest.Stream(a.schema, batch)))
	}
	_, addr := serve(t, front, nil)
	cnxn := connect(t, addr, source("orders"))
	types, err := cnxn.GetTableTypes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer types.Release()
	if !types.Next() || types.RecordBatch().NumRows() != 2 {
		t.Errorf("table types: %v", types.Err())
	}
	pattern := "line%"
	objects, err := cnxn.GetObjects(t.Context(), adbc.ObjectDepthTables, nil, nil, &pattern, nil, []string{"table"})
	if err != nil {
		t.Fatal(err)
	}
	defer objects.Release()
	if !objects.Next() {
		t.Fatal(objects.Err())
	}
	if doc, err := objects.RecordBatch().MarshalJSON(); err != nil || !strings.Contains(string(doc), "lineitem") {
		t.Errorf("%s %v", doc, err)
	}
	i := slices.IndexFunc(front.MetadataRequests(), func(r memberapi.MetadataRequest) bool { return r.Kind == memberapi.MetaTables })
	if i < 0 {
		t.Fatal("the member was not asked for tables")
	}
	if req := front.MetadataRequests()[i]; *req.TablePattern != pattern || len(req.TableTypes) != 1 {
		t.Errorf("the member was asked %+v", req)
	}
	info, err := cnxn.GetInfo(t.Context(), []adbc.InfoCode{adbc.InfoVendorName, adbc.InfoVendorVersion, adbc.InfoVendorSql, adbc.InfoDriverName})
	if err != nil {
		t.Fatal(err)
	}
	defer info.Release()
	doc := ""
	for info.Next() {
		part, _ := info.RecordBatch().MarshalJSON()
		doc += string(part)
	}
	if !strings.Contains(doc, "Sluice") || !strings.Contains(doc, "1.2.3") {
		t.Errorf("%s %v", doc, info.Err())
	}
}

func TestErrorDetails(t *testing.T) {
	front := frontendtest.New()
	_, addr := serve(t, front, nil)
	want := &errs.Error{
		Class: errs.Source, Message: "Fehler in der Nähe von »x« 🙂", Hint: "prüfen", SQLState: "42601", Position: 7, Step: errs.StepExecute,
	}
	front.On("details", frontendtest.Answer{Err: want})
	err := query(t, connect(t, addr, source("orders")), "details", nil)
	var e adbc.Error
	if !errors.As(err, &e) || !strings.Contains(e.Msg, want.Message) {
		t.Fatal(err)
	}
	md := trailerOf(t, addr, "details")
	var got errs.Error
	if err := json.Unmarshal([]byte(strings.Join(md.Get(TrailerError), "")), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(*want, got, cmp.AllowUnexported(errs.Error{})); diff != "" {
		t.Error(diff)
	}
	if id := md.Get(TrailerQueryID); len(id) != 1 || !strings.HasPrefix(id[0], "q") {
		t.Errorf("query %v", id)
	}
}

func TestManyStreamsAtOnce(t *testing.T) {
	front := frontendtest.New()
	streams := map[string][]byte{}
	for i := range 32 {
		sql := fmt.Sprint("query ", i)
		streams[sql] = frontendtest.Numbers(10+i, 3000+i)
		front.On(sql, frontendtest.Whole(streams[sql]))
	}
	_, addr := serve(t, front, nil)
	cnxn := connect(t, addr, source("orders"))
	var wg sync.WaitGroup
	for sql, stream := range streams {
		wg.Go(func() {
			if err := query(t, cnxn, sql, stream); err != nil {
				t.Errorf("%s: %v", sql, err)
			}
		})
	}
	wg.Wait()
	for id, err := range front.Finished() {
		if err != nil {
			t.Errorf("%s finished with %v", id, err)
		}
	}
}

func TestClientCancelEndsTheQuery(t *testing.T) {
	front := frontendtest.New()
	hang := frontendtest.Long(1, 10)
	hang.Tail, hang.Block = nil, true
	front.On("hang", hang)
	_, addr := serve(t, front, nil)
	cnxn := connect(t, addr, source("orders"))
	ctx, cancel := context.WithCancel(t.Context())
	reader, _, err := statementFor(t, cnxn, "hang").ExecuteQuery(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !reader.Next() || reader.RecordBatch().NumRows() != 10 {
		t.Fatalf("the first rows don't arrive: %v", reader.Err())
	}
	cancel()
	if !front.WaitClosed(30 * time.Second) {
		t.Error("the query goes on without its client")
	}
	for reader.Next() {
	}
	if reader.Err() == nil {
		t.Error("the cancelled result reads as whole")
	}
	reader.Release()
}

func TestSecondServerOnAnAddress(t *testing.T) {
	s, addr := serve(t, frontendtest.New(), nil)
	if _, err := s.Listen(addr); errs.ClassOf(err) != errs.Conflict || errs.As(err).Hint == "" {
		t.Errorf("%v", err)
	}
	if _, err := s.Listen("0.0.0.0:0"); errs.ClassOf(err) != errs.Invalid {
		t.Errorf("in the clear: %v", err)
	}
	if conn, err := net.Dial("tcp", addr); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
}
