package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/catalog"
	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// fakeSource is a connector, and what it opens, in memory.
type fakeSource struct {
	execute func(ctx context.Context, sql string, params arrow.RecordBatch) (array.RecordReader, error)
	update  func(ctx context.Context, sql string, params arrow.RecordBatch) (int64, error)
	objects func(depth adbc.ObjectDepth) (array.RecordReader, error)
	extend  func(*fakeDatabase) adbc.Database // adds optional abilities
	openErr error
	dialErr error

	opened, closed, dialled, statements atomic.Int32

	mu    sync.Mutex
	users []string // of the connections, in order
}

func (f *fakeSource) Descriptor() catalog.Descriptor { return catalog.Descriptor{Type: "fake"} }

func (f *fakeSource) Open(src memberapi.Source, opts connector.Options) (adbc.Database, error) {
	if f.openErr != nil {
		return nil, f.openErr
	}
	f.opened.Add(1)
	db := &fakeDatabase{fake: f}
	if f.extend != nil {
		return f.extend(db), nil
	}
	return db, nil
}

type fakeDatabase struct {
	adbc.Database
	fake *fakeSource
}

func (d *fakeDatabase) Open(context.Context) (adbc.Connection, error) {
	d.fake.dialled.Add(1)
	if d.fake.dialErr != nil {
		return nil, d.fake.dialErr
	}
	return &fakeConnection{fake: d.fake}, nil
}

func (d *fakeDatabase) Close() error { d.fake.closed.Add(1); return nil }

type fakeConnection struct {
	adbc.Connection
	fake *fakeSource
}

// SetUser implements connector.UserAware.
func (c *fakeConnection) SetUser(id string) {
	c.fake.mu.Lock()
	defer c.fake.mu.Unlock()
	c.fake.users = append(c.fake.users, id)
}

func (c *fakeConnection) Close() error { c.fake.dialled.Add(-1); return nil }

func (c *fakeConnection) NewStatement() (adbc.Statement, error) {
	c.fake.statements.Add(1)
	return &fakeStatement{fake: c.fake}, nil
}

func (c *fakeConnection) GetObjects(_ context.Context, depth adbc.ObjectDepth, _, _, _, _ *string, _ []string) (array.RecordReader, error) {
	return c.fake.objects(depth)
}

func (c *fakeConnection) GetTableTypes(context.Context) (array.RecordReader, error) {
	return encodeRows(adbc.TableTypesSchema, []map[string]any{{"table_type": "BASE TABLE"}, {"table_type": "VIEW"}})
}

func (c *fakeConnection) GetTableSchema(_ context.Context, _, _ *string, table string) (*arrow.Schema, error) {
	return arrow.NewSchema([]arrow.Field{{Name: table + "_id", Type: arrow.PrimitiveTypes.Int32}}, nil), nil
}

type fakeStatement struct {
	adbc.Statement
	fake   *fakeSource
	sql    string
	params arrow.RecordBatch
}

func (s *fakeStatement) SetSqlQuery(sql string) error { s.sql = sql; return nil }

func (s *fakeStatement) Bind(_ context.Context, rec arrow.RecordBatch) error {
	rec.Retain()
	s.params = rec
	return nil
}

func (s *fakeStatement) ExecuteQuery(ctx context.Context) (array.RecordReader, int64, error) {
	r, err := s.fake.execute(ctx, s.sql, s.params)
	return r, -1, err
}

func (s *fakeStatement) ExecuteUpdate(ctx context.Context) (int64, error) {
	return s.fake.update(ctx, s.sql, s.params)
}

func (s *fakeStatement) Prepare(context.Context) error { return nil }

func (s *fakeStatement) GetParameterSchema() (*arrow.Schema, error) {
	return nil, adbc.Error{Code: adbc.StatusNotImplemented, Msg: "not implemented"}
}

func (s *fakeStatement) ExecuteSchema(context.Context) (*arrow.Schema, error) { return numbers, nil }

func (s *fakeStatement) Close() error {
	s.fake.statements.Add(-1)
	if s.params != nil {
		s.params.Release()
	}
	return nil
}

// numbers is the schema of the results that the fake gives.
var numbers = arrow.NewSchema([]arrow.Field{
	{Name: "n", Type: arrow.PrimitiveTypes.Int64},
	{Name: "word", Type: arrow.BinaryTypes.String, Nullable: true},
}, nil)

// numberBatch has rows first, first+1 and so on.
func numberBatch(first, rows int64) arrow.RecordBatch {
	b := array.NewRecordBuilder(memory.DefaultAllocator, numbers)
	defer b.Release()
	b.Reserve(int(rows))
	words := b.Field(1).(*array.StringBuilder)
	for i := first; i < first+rows; i++ {
		b.Field(0).(*array.Int64Builder).Append(i)
		words.Append("some words of text that take a little room")
	}
	return b.NewRecordBatch()
}

// reader gives what next returns, until nil; then err.
type reader struct {
	array.RecordReader
	next  func(i int) (arrow.RecordBatch, error)
	i     int
	rec   arrow.RecordBatch
	err   error
	freed *atomic.Bool
}

func (r *reader) Schema() *arrow.Schema          { return numbers }
func (r *reader) RecordBatch() arrow.RecordBatch { return r.rec }
func (r *reader) Err() error                     { return r.err }
func (r *reader) Retain()                        {}
func (r *reader) Release() {
	if r.freed != nil {
		r.freed.Store(true)
	}
}

func (r *reader) Next() bool {
	r.rec, r.err = r.next(r.i)
	r.i++
	return r.rec != nil && r.err == nil
}

// batches gives n batches of rows each, and then err.
func batches(n int, rows int64, err error) *reader {
	return &reader{next: func(i int) (arrow.RecordBatch, error) {
		if i >= n {
			return nil, err
		}
		return numberBatch(int64(i)*rows, rows), nil
	}}
}

// selects makes a source whose queries all give what f does.
func selects(f func(ctx context.Context) *reader) *fakeSource {
	return &fakeSource{execute: func(ctx context.Context, _ string, _ arrow.RecordBatch) (array.RecordReader, error) {
		return f(ctx), nil
	}}
}

// serve runs a Server over real HTTP.
func serve(t testing.TB, fake *fakeSource, opts ...func(*ServerOptions)) (url string, s *Server) {
	t.Helper()
	o := ServerOptions{
		Lookup:  func(name string) (connector.Connector, bool) { return fake, name == "fake" },
		Resolve: NewResolver(nil).Resolve,
		Logger:  slog.New(slog.DiscardHandler),
	}
	for _, f := range opts {
		f(&o)
	}
	s = NewServer(o)
	web := httptest.NewServer(s)
	t.Cleanup(func() {
		web.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if n := fake.dialled.Load() + fake.statements.Load(); n != 0 && fake.dialErr == nil {
			t.Errorf("%d connections and statements were not closed", n)
		}
		if o, c := fake.opened.Load(), fake.closed.Load(); o != c {
			t.Errorf("%d databases opened, %d closed", o, c)
		}
	})
	return web.URL, s
}

var source = memberapi.Source{Name: "orders", Type: "fake", Username: "u", Password: "hunter2"}

func query(sql string) memberapi.QueryRequest {
	return memberapi.QueryRequest{QueryID: "q", Source: source, SQL: sql}
}

func (f *fakeSource) lookup(string) (connector.Connector, bool) { return f, true }

// post sends a request.
func post(t testing.TB, ctx context.Context, url string, req any) *http.Response {
	t.Helper()
	return postWith(t, ctx, http.DefaultClient, url, req)
}

func postWith(t testing.TB, ctx context.Context, client *http.Client, url string, req any) *http.Response {
	t.Helper()
	resp, err := send(ctx, client, url, req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func send(ctx context.Context, client *http.Client, url string, req any) (*http.Response, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	return client.Do(r)
}

// result is what a client has of an answer.
type result struct {
	rows  int64
	stats memberapi.Stats
	err   error // nil: whole
}

// read takes an answer as memberapi defines it: whole only with marker and status.
func read(resp *http.Response) (res result) {
	if resp.StatusCode != http.StatusOK {
		var e errs.Error
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
			return result{err: err}
		}
		return result{err: &e}
	}
	frames := arrowipc.NewReader(resp.Body, arrowipc.Options{})
	var err error
	for err == nil {
		var f arrowipc.Frame
		f, err = frames.Next()
		res.rows += f.Rows
	}
	_, rest := io.Copy(io.Discard, resp.Body)
	_ = json.Unmarshal([]byte(resp.Trailer.Get(memberapi.TrailerStats)), &res.stats)
	var e errs.Error
	switch {
	case resp.Trailer.Get(memberapi.TrailerError) != "":
		if bad := json.Unmarshal([]byte(resp.Trailer.Get(memberapi.TrailerError)), &e); bad != nil {
			res.err = bad
			return res
		}
		res.err = &e
		if err == io.EOF {
			res.err = errors.New("the end-of-stream marker came with an error")
		}
	case err != io.EOF:
		res.err = err
	case rest != nil:
		res.err = rest
	case resp.Trailer.Get(memberapi.TrailerStatus) != memberapi.StatusOK:
		res.err = errors.New("no status")
	}
	return res
}

// records decodes a whole answer.
func records(t testing.TB, resp *http.Response) (*arrow.Schema, []arrow.RecordBatch) {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d, %v: %s", resp.StatusCode, err, body)
	}
	if e := resp.Trailer.Get(memberapi.TrailerError); e != "" {
		t.Fatal(e)
	}
	r, err := ipc.NewReader(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	var all []arrow.RecordBatch
	for r.Next() {
		rec := r.RecordBatch()
		rec.Retain()
		all = append(all, rec)
	}
	return r.Schema(), all
}
