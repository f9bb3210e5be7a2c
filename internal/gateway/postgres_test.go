package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/connector/postgres"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/testpg"
)

// pgMember is a Server over a real PostgreSQL.
type pgMember struct {
	url string
	src memberapi.Source
}

func servePostgres(t *testing.T, pg *testpg.Server, writable bool) pgMember {
	t.Helper()
	s := NewServer(ServerOptions{
		Lookup:  func(name string) (connector.Connector, bool) { return postgres.New(), name == "postgres" },
		Resolve: NewResolver(nil).Resolve, Logger: slog.New(slog.DiscardHandler),
	})
	web := httptest.NewServer(s)
	t.Cleanup(func() {
		web.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return pgMember{web.URL, memberapi.Source{
		Name: "orders", Type: "postgres", ReadOnly: !writable,
		Parameters: map[string]string{"host": pg.Host, "port": fmt.Sprint(pg.Port), "database": pg.Database, "tls": "disable"},
		Credential: core.CredentialBasic, Username: pg.User, Password: pg.Password,
	}}
}

func (p pgMember) query(t *testing.T, ctx context.Context, sql string, change ...func(*memberapi.QueryRequest)) result {
	t.Helper()
	req := memberapi.QueryRequest{QueryID: "q", Source: p.src, SQL: sql}
	for _, f := range change {
		f(&req)
	}
	return read(post(t, ctx, p.url+memberapi.PathQuery, req))
}

func TestPostgresMemoryIsFlat(t *testing.T) {
	p := servePostgres(t, testpg.Shared(t), false)
	sql := func(n int) string {
		return fmt.Sprintf("select g, g::float8 / 3, 'row number ' || g, now() from generate_series(1, %d) g", n)
	}
	run := func(n int) uint64 {
		return heapWatch(func() {
			if res := p.query(t, t.Context(), sql(n)); res.err != nil || res.rows != int64(n) || res.stats.Execute == 0 {
				t.Fatalf("%d rows, %v, %+v", res.rows, res.err, res.stats)
			}
		})
	}
	run(1000)
	small, large := run(100_000), run(1_000_000)
	t.Logf("peak heap: %d KiB for 1e5 rows, %d KiB for 1e6", small>>10, large>>10)
	if large > small+small/5+16<<20 {
		t.Errorf("peak heap grew from %d to %d bytes", small, large)
	}
}

func TestPostgresErrorInTheMiddle(t *testing.T) {
	t.Parallel()
	p := servePostgres(t, testpg.Shared(t), false)
	for name, sql := range map[string]string{
		"late":  "select 1 / (800000 - g) from generate_series(1, 1000000) g",
		"early": "select 1 / (3 - g) from generate_series(1, 10) g",
	} {
		var e *errs.Error
		res := p.query(t, t.Context(), sql)
		if !errors.As(res.err, &e) || e.Class != errs.Source || e.SQLState != "22012" {
			t.Errorf("%s: %#v after %d rows", name, res.err, res.rows)
		}
	}
	var e *errs.Error
	if err := p.query(t, t.Context(), "select nonsense frm x").err; !errors.As(err, &e) || e.SQLState != "42601" || e.Step != errs.StepExecute || e.Position == 0 {
		t.Errorf("syntax error: %#v", err)
	}
}

// A server that dies in the middle of a result is an error of the stream.
func TestPostgresDies(t *testing.T) {
	t.Parallel()
	pg := testpg.Start(t)
	p := servePostgres(t, pg, false)
	resp := post(t, t.Context(), p.url+memberapi.PathQuery, memberapi.QueryRequest{Source: p.src, SQL: "select generate_series(1, 50000000), repeat('x', 100)"})
	frames := arrowipc.NewReader(resp.Body, arrowipc.Options{})
	for range 3 {
		if _, err := frames.Next(); err != nil {
			t.Fatal(err)
		}
	}
	pg.Stop(t)
	if res := read(resp); res.err == nil {
		t.Error("half a result passes for whole")
	}
}

func TestPostgresCancel(t *testing.T) {
	t.Parallel()
	pg := testpg.Shared(t)
	p := servePostgres(t, pg, false)
	running := func() string {
		return pg.Value(t, "select count(*) from pg_stat_activity where state = 'active' and datname = current_database() and query like '%/* cancel me */%' and pid <> pg_backend_pid()")
	}
	for name, sql := range map[string]string{
		"sleeping":  "/* cancel me */ select pg_sleep(60)",
		"streaming": "/* cancel me */ select generate_series(1, 50000000), repeat('x', 100)",
	} {
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan struct{})
		go func() {
			defer close(over)
			req := memberapi.QueryRequest{Source: p.src, SQL: sql}
			if resp, err := send(ctx, http.DefaultClient, p.url+memberapi.PathQuery, req); err == nil {
				<-ctx.Done()
				resp.Body.Close()
			}
		}()
		waitFor(t, 10*time.Second, func() bool { return running() == "1" })
		cancel()
		start := time.Now()
		waitFor(t, 5*time.Second, func() bool { return running() == "0" })
		t.Logf("%s: gone after %s", name, time.Since(start))
		<-over
	}
}

func TestPostgresLimits(t *testing.T) {
	t.Parallel()
	p := servePostgres(t, testpg.Shared(t), false)
	res := p.query(t, t.Context(), "select generate_series(1, 100000)", func(r *memberapi.QueryRequest) { r.MaxRows = 99_999 })
	if errs.ClassOf(res.err) != errs.Exhausted || !strings.Contains(res.err.Error(), "99999") {
		t.Errorf("rows: %v", res.err)
	}
	res = p.query(t, t.Context(), "select generate_series(1, 100000)", func(r *memberapi.QueryRequest) { r.MaxRows = 100_000 })
	if res.err != nil || res.rows != 100_000 {
		t.Errorf("as many rows as allowed: %d, %v", res.rows, res.err)
	}
	res = p.query(t, t.Context(), "select pg_sleep(30)", func(r *memberapi.QueryRequest) { r.TimeoutMS = 200 })
	if errs.ClassOf(res.err) != errs.Timeout || !strings.Contains(res.err.Error(), "200ms") {
		t.Errorf("time: %v", res.err)
	}
}

func TestPostgresUpdateAndParams(t *testing.T) {
	t.Parallel()
	pg := testpg.Shared(t)
	pg.Exec(t, "create table t (id bigint primary key, word text)")
	pg.Exec(t, "grant all on t to public")
	p := servePostgres(t, pg, true)
	var stream bytes.Buffer
	w := ipc.NewWriter(&stream, ipc.WithSchema(numbers))
	for _, rec := range []arrow.RecordBatch{numberBatch(0, 3), numberBatch(3, 2)} {
		if err := w.Write(rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	req := memberapi.QueryRequest{Source: p.src, SQL: "insert into t values ($1, $2)", Params: stream.Bytes(), Update: true}
	_, recs := records(t, post(t, t.Context(), p.url+memberapi.PathQuery, req))
	if got := recs[0].Column(0).(*array.Int64).Value(0); got != 5 {
		t.Errorf("%d rows inserted, want 5", got)
	}
	if got := pg.Value(t, "select count(*) || ' ' || sum(id) from t"); got != "5 10" {
		t.Errorf("the table holds %s", got)
	}
	req = memberapi.QueryRequest{Source: p.src, SQL: "select id from t where id = $1 and $2::text is not null", Params: stream.Bytes()}
	if res := read(post(t, t.Context(), p.url+memberapi.PathQuery, req)); res.err != nil || res.rows != 5 {
		t.Errorf("a query once for each row: %d rows, %v", res.rows, res.err)
	}

	var prepared memberapi.PrepareResponse
	if err := json.NewDecoder(post(t, t.Context(), p.url+memberapi.PathPrepare, memberapi.QueryRequest{Source: p.src, SQL: "select word from t where id = $1"}).Body).Decode(&prepared); err != nil {
		t.Fatal(err)
	}
	dataset, err1 := arrowipc.DecodeSchema(prepared.Dataset)
	params, err2 := arrowipc.DecodeSchema(prepared.Params)
	if err := errors.Join(err1, err2); err != nil || dataset.Field(0).Name != "word" || params.Field(0).Type.ID() != arrow.INT64 {
		t.Errorf("dataset %v, params %v, %v", dataset, params, err)
	}

	p.src.ReadOnly = true
	if err := p.query(t, t.Context(), "delete from t", func(r *memberapi.QueryRequest) { r.Update = true }).err; errs.ClassOf(err) != errs.Source {
		t.Errorf("a delete from a read-only source: %v", err)
	}
}

func TestPostgresMetadata(t *testing.T) {
	t.Parallel()
	pg := testpg.Shared(t)
	pg.Exec(t, `create schema shop; grant usage on schema shop to public;
		create table shop.orders (id bigint primary key, word text);
		create table shop.lines (id bigint, o bigint references shop.orders);
		grant select on all tables in schema shop to public`)
	p := servePostgres(t, pg, false)
	ptr := func(s string) *string { return &s }
	orders, lines := memberapi.TableRef{Schema: ptr("shop"), Table: "orders"}, memberapi.TableRef{Schema: ptr("shop"), Table: "lines"}
	for _, tt := range []struct {
		req    memberapi.MetadataRequest
		column int // where want is found
		want   string
	}{
		{memberapi.MetadataRequest{Kind: memberapi.MetaCatalogs}, 0, pg.Database},
		{memberapi.MetadataRequest{Kind: memberapi.MetaSchemas, SchemaPattern: ptr("sho_")}, 1, "shop"},
		{memberapi.MetadataRequest{Kind: memberapi.MetaTables, SchemaPattern: ptr("shop")}, 2, "lines orders"},
		{memberapi.MetadataRequest{Kind: memberapi.MetaTables, SchemaPattern: ptr("shop"), IncludeSchema: true}, 2, "lines orders"},
		{memberapi.MetadataRequest{Kind: memberapi.MetaTableTypes}, 0, ""},
		{memberapi.MetadataRequest{Kind: memberapi.MetaPrimaryKeys, Table: orders}, 3, "id"},
		{memberapi.MetadataRequest{Kind: memberapi.MetaExportedKeys, Table: orders}, 7, "o"},
		{memberapi.MetadataRequest{Kind: memberapi.MetaImportedKeys, Table: lines}, 3, "id"},
		{memberapi.MetadataRequest{Kind: memberapi.MetaCrossReference, Table: orders, Other: lines}, 6, "lines"},
		{memberapi.MetadataRequest{Kind: memberapi.MetaCrossReference, Table: lines, Other: orders}, 6, "nothing"},
		{memberapi.MetadataRequest{Kind: memberapi.MetaTypeInfo}, 0, ""},
	} {
		name := fmt.Sprintf("%s %t", tt.req.Kind, tt.req.IncludeSchema)
		tt.req.Source = p.src
		schema, recs := records(t, post(t, t.Context(), p.url+memberapi.PathMetadata, tt.req))
		if want, _ := metaSchema(tt.req); !schema.Equal(want) {
			t.Errorf("%s: schema %s, want %s", name, schema, want)
		}
		var got []string
		for _, rec := range recs {
			for i := range int(rec.NumRows()) {
				got = append(got, rec.Column(tt.column).ValueStr(i))
			}
		}
		switch have := strings.Join(got, " "); {
		case tt.want == "" && have == "", tt.want == "nothing" && have != "":
			t.Errorf("%s: got %q", name, have)
		case tt.want != "" && tt.want != "nothing" && have != tt.want:
			t.Errorf("%s: got %q, want %q", name, have, tt.want)
		}
	}
}

func TestPostgresTest(t *testing.T) {
	t.Parallel()
	p := servePostgres(t, testpg.Shared(t), false)
	test := func(src memberapi.Source) memberapi.TestResponse {
		var resp memberapi.TestResponse
		if err := json.NewDecoder(post(t, t.Context(), p.url+memberapi.PathTest, memberapi.SourceRequest{Source: src}).Body).Decode(&resp); err != nil {
			t.Fatal(err)
		}
		return resp
	}
	good := test(p.src)
	if last := good.Steps[len(good.Steps)-1]; last.Error != "" || last.Name != errs.StepExecute {
		t.Errorf("steps %+v", good.Steps)
	}
	wrong := p.src
	wrong.Password = "not-the-password"
	bad := test(wrong)
	if last := bad.Steps[len(bad.Steps)-1]; last.Name != errs.StepSignIn || last.Error == "" || strings.Contains(last.Error, wrong.Password) {
		t.Errorf("steps %+v", bad.Steps)
	}
}
