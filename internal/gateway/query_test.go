package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// heapWatch records the largest live heap while f runs.
func heapWatch(f func()) (peak uint64) {
	runtime.GC()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		var m runtime.MemStats
		for {
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapInuse)
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	f()
	close(stop)
	wg.Wait()
	return peak
}

// Promise 6, for what the gateway itself holds: 1e6 rows and 20e6 rows in the same memory.
func TestMemoryDoesNotGrowWithTheResult(t *testing.T) {
	shared := numberBatch(0, 10_000)
	url, _ := serve(t, &fakeSource{execute: func(_ context.Context, sql string, _ arrow.RecordBatch) (array.RecordReader, error) {
		var n int
		_, err := fmt.Sscan(sql, &n)
		return &reader{next: func(i int) (arrow.RecordBatch, error) {
			if i >= n {
				return nil, nil
			}
			return shared, nil
		}}, err
	}})
	run := func(n int) uint64 {
		return heapWatch(func() {
			resp := post(t, t.Context(), url+memberapi.PathQuery, query(fmt.Sprint(n)))
			size, err := io.Copy(io.Discard, resp.Body)
			if err != nil || resp.Trailer.Get(memberapi.TrailerStatus) != memberapi.StatusOK {
				t.Fatalf("%v, trailers %v", err, resp.Trailer)
			}
			var stats memberapi.Stats
			if err := json.Unmarshal([]byte(resp.Trailer.Get(memberapi.TrailerStats)), &stats); err != nil {
				t.Fatal(err)
			}
			if stats.Rows != int64(n)*10_000 || stats.PeakBytes == 0 || stats.Stream == 0 || size < stats.Rows*50 {
				t.Errorf("stats %+v for %d rows in %d bytes", stats, n*10_000, size)
			}
		})
	}
	small, large := run(100), run(2000)
	t.Logf("peak heap: %d KiB for 1e6 rows, %d KiB for 20e6", small>>10, large>>10)
	if large > small+small/5+16<<20 {
		t.Errorf("peak heap grew from %d to %d bytes", small, large)
	}
}

func TestErrorsAreNeverAWholeResult(t *testing.T) {
	t.Parallel()
	broken := errs.New(errs.Source, "deadlock detected").WithStep(errs.StepStream)
	broken.SQLState = "40P01"
	for _, tt := range []struct {
		name   string
		source *fakeSource
		status int // 0: either, by how fast the machine is
		class  errs.Class
		step   string
	}{
		{"at once", &fakeSource{execute: func(context.Context, string, arrow.RecordBatch) (array.RecordReader, error) {
			return nil, errs.New(errs.Source, "syntax error").WithStep(errs.StepExecute)
		}}, 422, errs.Source, errs.StepExecute},
		{"no connection", &fakeSource{dialErr: errors.New("who knows")}, 500, errs.Internal, errs.StepConnect},
		{"cannot open", &fakeSource{openErr: errs.New(errs.Invalid, "no such parameter")}, 400, errs.Invalid, errs.StepAdmit},
		{"a driver's own error", &fakeSource{execute: func(context.Context, string, arrow.RecordBatch) (array.RecordReader, error) {
			return nil, adbc.Error{Code: adbc.StatusInvalidArgument, Msg: "column missing", SqlState: [5]byte{'4', '2', '7', '0', '3'}}
		}}, 422, errs.Source, errs.StepExecute},
		{"before anything was sent", selects(func(context.Context) *reader { return batches(1, 10, broken) }), 0, errs.Source, errs.StepStream},
		{"in the middle", selects(func(context.Context) *reader { return batches(50, 5000, broken) }), 200, errs.Source, errs.StepStream},
		{"after a slow schema", selects(func(context.Context) *reader {
			return &reader{next: func(int) (arrow.RecordBatch, error) {
				time.Sleep(50 * time.Millisecond)
				return nil, broken
			}}
		}), 200, errs.Source, errs.StepStream},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			url, _ := serve(t, tt.source)
			for range 3 { // the connection stays usable
				resp := post(t, t.Context(), url+memberapi.PathQuery, query("select"))
				if tt.status != 0 && resp.StatusCode != tt.status {
					t.Errorf("status %d, want %d", resp.StatusCode, tt.status)
				}
				var e *errs.Error
				if err := read(resp).err; !errors.As(err, &e) || e.Class != tt.class || e.Step != tt.step {
					t.Fatalf("got %#v, want class %s at step %s", err, tt.class, tt.step)
				}
				if tt.name == "a driver's own error" && e.SQLState != "42703" {
					t.Errorf("SQLSTATE %q", e.SQLState)
				}
			}
		})
	}
}

// A reader that takes the end of its context for the end of its rows must not make a
// whole result.
func TestTimeLimit(t *testing.T) {
	t.Parallel()
	for name, source := range map[string]*fakeSource{
		"a reader that says so": selects(func(ctx context.Context) *reader {
			return &reader{next: func(int) (arrow.RecordBatch, error) { <-ctx.Done(); return nil, ctx.Err() }}
		}),
		"a reader that ends quietly": selects(func(ctx context.Context) *reader {
			return &reader{next: func(int) (arrow.RecordBatch, error) { <-ctx.Done(); return nil, nil }}
		}),
		"in execution": {execute: func(ctx context.Context, _ string, _ arrow.RecordBatch) (array.RecordReader, error) {
			<-ctx.Done()
			return nil, errs.New(errs.Timeout, "canceling statement due to user request").WithStep(errs.StepExecute)
		}},
		"a reader without an end": selects(func(context.Context) *reader { return batches(1e9, 1000, nil) }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, _ := serve(t, source)
			req := query("select")
			req.TimeoutMS = 100
			start := time.Now()
			err := read(post(t, t.Context(), url+memberapi.PathQuery, req)).err
			if errs.ClassOf(err) != errs.Timeout || !strings.Contains(err.Error(), "100ms") {
				t.Errorf("got %v", err)
			}
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("it took %s", d)
			}
		})
	}
}

// A client that stops reading is no way round the limit: its connection is cut.
func TestTimeLimitWhileTheClientStalls(t *testing.T) {
	t.Parallel()
	var freed atomic.Bool
	url, _ := serve(t, selects(func(context.Context) *reader {
		r := batches(1e9, 10_000, nil)
		r.freed = &freed
		return r
	}))
	req := query("select")
	req.TimeoutMS = 100
	resp := post(t, t.Context(), url+memberapi.PathQuery, req)
	waitFor(t, grace+30*time.Second, freed.Load)
	if err := read(resp).err; err == nil {
		t.Error("a result that was cut passes for whole")
	}
}

func TestStalledClientHoldsMemoryAndSource(t *testing.T) {
	var pulled atomic.Int64
	const total = 500
	url, _ := serve(t, selects(func(context.Context) *reader {
		r := batches(total, 20_000, nil)
		next := r.next
		r.next = func(i int) (arrow.RecordBatch, error) { pulled.Store(int64(i)); return next(i) }
		return r
	}))
	var resp *http.Response
	peak := heapWatch(func() {
		resp = post(t, t.Context(), url+memberapi.PathQuery, query("select"))
		// It reads on until every buffer on the way is full, which a busy machine takes its time for.
		for before := int64(-1); before != pulled.Load(); time.Sleep(500 * time.Millisecond) {
			before = pulled.Load()
		}
	})
	if n := pulled.Load(); n > total/4 {
		t.Errorf("the source was read on, to batch %d of %d, while the client stalled", n, total)
	}
	if peak > 64<<20 {
		t.Errorf("%d bytes of heap for a client that does not read", peak)
	}
	if res := read(resp); res.err != nil || res.rows != total*20_000 {
		t.Errorf("reading on gave %d rows, %v", res.rows, res.err)
	}
}

func TestClientClosingCancels(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		source func(seen chan<- time.Time) *fakeSource
	}{
		{"while executing", func(seen chan<- time.Time) *fakeSource {
			return &fakeSource{execute: func(ctx context.Context, _ string, _ arrow.RecordBatch) (array.RecordReader, error) {
				<-ctx.Done()
				seen <- time.Now()
				return nil, ctx.Err()
			}}
		}},
		{"while waiting for rows", func(seen chan<- time.Time) *fakeSource {
			return selects(func(ctx context.Context) *reader {
				return &reader{next: func(i int) (arrow.RecordBatch, error) {
					if i == 0 {
						return numberBatch(0, 10), nil
					}
					<-ctx.Done()
					seen <- time.Now()
					return nil, ctx.Err()
				}}
			})
		}},
		{"while the client does not read", func(seen chan<- time.Time) *fakeSource {
			return selects(func(ctx context.Context) *reader {
				context.AfterFunc(ctx, func() { seen <- time.Now() })
				return batches(1e9, 10_000, nil)
			})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			seen := make(chan time.Time, 1)
			url, _ := serve(t, tt.source(seen))
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() {
				body, _ := json.Marshal(query("select"))
				req, _ := http.NewRequestWithContext(ctx, http.MethodPost, url+memberapi.PathQuery, bytes.NewReader(body))
				if resp, err := http.DefaultClient.Do(req); err == nil {
					<-ctx.Done()
					resp.Body.Close()
				}
			})
			time.Sleep(150 * time.Millisecond)
			cancel()
			start := time.Now()
			select {
			case at := <-seen:
				if d := at.Sub(start); d > 20*time.Second {
					t.Errorf("the source heard of it after %s", d)
				}
			case <-time.After(30 * time.Second):
				t.Error("the source never heard that the client went away")
			}
			wg.Wait()
		})
	}
}

// A slow query shows life: the schema, and a first small batch, leave at once.
func TestFirstBytesLeaveAtOnce(t *testing.T) {
	t.Parallel()
	goOn := make(chan struct{})
	url, _ := serve(t, selects(func(context.Context) *reader {
		return &reader{next: func(i int) (arrow.RecordBatch, error) {
			switch i {
			case 0:
				<-goOn
				return numberBatch(0, 3), nil
			case 1:
				<-goOn
			}
			return nil, nil
		}}
	}))
	resp := post(t, t.Context(), url+memberapi.PathQuery, query("select"))
	frames := arrowipc.NewReader(resp.Body, arrowipc.Options{})
	for _, want := range []arrowipc.Kind{arrowipc.Schema, arrowipc.RecordBatch} {
		got := make(chan arrowipc.Frame, 1)
		go func() {
			f, _ := frames.Next()
			got <- f
		}()
		select {
		case f := <-got:
			if f.Kind != want {
				t.Fatalf("got a %s, want a %s", f.Kind, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("the %s is held back", want)
		}
		goOn <- struct{}{}
	}
	if _, err := frames.Next(); err != io.EOF {
		t.Error(err)
	}
}

func TestMaxRows(t *testing.T) {
	t.Parallel()
	url, _ := serve(t, selects(func(context.Context) *reader { return batches(10, 100, nil) }))
	req := query("select")
	for limit, whole := range map[int64]bool{0: true, 1000: true, 5000: true, 999: false, 50: false, 500: false} {
		req.MaxRows = limit
		res := read(post(t, t.Context(), url+memberapi.PathQuery, req))
		if whole != (res.err == nil) {
			t.Errorf("limit %d: %v", limit, res.err)
		}
		if !whole && (errs.ClassOf(res.err) != errs.Exhausted || !strings.Contains(res.err.Error(), fmt.Sprint(limit))) {
			t.Errorf("limit %d: %v", limit, res.err)
		}
		if limit > 0 && res.rows > limit {
			t.Errorf("limit %d: %d rows came", limit, res.rows)
		}
	}
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	url, _ := serve(t, &fakeSource{update: func(_ context.Context, sql string, _ arrow.RecordBatch) (int64, error) {
		if sql != "delete" {
			return 0, errs.New(errs.Source, "no")
		}
		return 42, nil
	}})
	req := query("delete")
	req.Update = true
	schema, recs := records(t, post(t, t.Context(), url+memberapi.PathQuery, req))
	if schema.NumFields() != 1 || schema.Field(0).Name != "rows" || schema.Field(0).Type.ID() != arrow.INT64 {
		t.Errorf("schema %s", schema)
	}
	if len(recs) != 1 || recs[0].NumRows() != 1 || recs[0].Column(0).(*array.Int64).Value(0) != 42 {
		t.Errorf("got %v", recs)
	}
}

func TestParams(t *testing.T) {
	t.Parallel()
	var bound atomic.Int64
	url, _ := serve(t, &fakeSource{execute: func(_ context.Context, _ string, params arrow.RecordBatch) (array.RecordReader, error) {
		bound.Store(-1)
		if params != nil {
			bound.Store(params.NumRows())
			for i := range params.NumRows() {
				if got := params.Column(0).(*array.Int64).Value(int(i)); got != i {
					return nil, errs.New(errs.Internal, "row %d is %d", i, got)
				}
			}
		}
		return batches(1, 1, nil), nil
	}})
	encode := func(schema *arrow.Schema, recs ...arrow.RecordBatch) []byte {
		var b bytes.Buffer
		w := ipc.NewWriter(&b, ipc.WithSchema(schema))
		for _, r := range recs {
			if err := w.Write(r); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	whole := encode(numbers, numberBatch(0, 3), numberBatch(3, 4))
	for _, tt := range []struct {
		name   string
		params []byte
		want   int64 // -1: none bound
		class  errs.Class
	}{
		{"none", nil, -1, ""},
		{"one batch", encode(numbers, numberBatch(0, 5)), 5, ""},
		{"two batches", whole, 7, ""},
		{"no columns", encode(arrow.NewSchema(nil, nil)), -1, ""},
		{"no rows", encode(numbers), 0, errs.Invalid},
		{"cut between batches", whole[:len(whole)-8], 0, errs.Invalid},
		{"garbage", []byte("garbage"), 0, errs.Invalid},
	} {
		req := query("select $1")
		req.Params = tt.params
		err := read(post(t, t.Context(), url+memberapi.PathQuery, req)).err
		if errs.ClassOf(err) != tt.class {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err == nil && bound.Load() != tt.want {
			t.Errorf("%s: %d rows bound, want %d", tt.name, bound.Load(), tt.want)
		}
	}
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	url, _ := serve(t, &fakeSource{})
	var got memberapi.PrepareResponse
	if err := json.NewDecoder(post(t, t.Context(), url+memberapi.PathPrepare, query("select")).Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	schema, err := arrowipc.DecodeSchema(got.Dataset)
	if err != nil || !schema.Equal(numbers) {
		t.Errorf("dataset %v, %v", schema, err)
	}
	if got.Params != nil {
		t.Errorf("params %x of a driver that does not know them", got.Params)
	}
}

// A defect ends one request, with an error, and puts nothing of the request in the log.
func TestPanics(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	withLog := func(o *ServerOptions) { o.Logger = slog.New(slog.NewJSONHandler(&log, nil)) }
	url, _ := serve(t, &fakeSource{execute: func(_ context.Context, sql string, _ arrow.RecordBatch) (array.RecordReader, error) {
		if sql == "early hunter2" {
			panic("can't do " + sql)
		}
		return &reader{next: func(i int) (arrow.RecordBatch, error) {
			if i == 3 {
				panic(fmt.Errorf("can't do %s", sql))
			}
			return numberBatch(0, 10_000), nil
		}}, nil
	}}, withLog)
	resp := post(t, t.Context(), url+memberapi.PathQuery, query("early hunter2"))
	if err := read(resp).err; resp.StatusCode != 500 || errs.ClassOf(err) != errs.Internal {
		t.Errorf("early: status %d, %v", resp.StatusCode, err)
	}
	if res := read(post(t, t.Context(), url+memberapi.PathQuery, query("late hunter2"))); res.err == nil {
		t.Error("late: the result passes for whole")
	}
	if got := log.String(); !strings.Contains(got, "a request failed by a defect") || strings.Contains(got, "hunter2") {
		t.Errorf("log: %s", got)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	url, _ := serve(t, &fakeSource{})
	for _, tt := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", memberapi.PathQuery, "", 405},
		{"POST", "/else", "", 404},
		{"POST", memberapi.PathQuery, "hunter2", 400},
		{"POST", memberapi.PathMetadata, `{"kind":"secrets","source":{"type":"fake"}}`, 400},
		{"POST", memberapi.PathQuery, `{"source":{"type":"oracle"}}`, 400},
		{"POST", memberapi.PathProbe, `{}`, 400},
		{"POST", memberapi.PathQuery, `{"sql":"` + strings.Repeat("x", maxRequest) + `"}`, 429},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, url+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tt.status || strings.Contains(string(body), "hunter2") {
			t.Errorf("%s %s %.40s: %d %s", tt.method, tt.path, tt.body, resp.StatusCode, body)
		}
	}
}

// The trailer of an error survives an HTTP client whatever the message is.
func TestErrorTrailers(t *testing.T) {
	t.Parallel()
	for name, message := range map[string]string{
		"long":       strings.Repeat("relation \"x\" does not exist; ", 1000),
		"not ASCII":  "Spalte „größe“ fehlt \u007f\u2028 🐘\r\nX-Evil: 1",
		"both":       strings.Repeat("🐘\u0001\"", 5000),
		"not UTF-8":  "a\xffb",
		"everything": strings.Repeat("日本語", 900),
	} {
		t.Run(name, func(t *testing.T) {
			url, _ := serve(t, selects(func(context.Context) *reader {
				return batches(20, 5000, errs.New(errs.Source, "%s", message).WithHint("%s", message))
			}))
			resp := post(t, t.Context(), url+memberapi.PathQuery, query("select"))
			var e *errs.Error
			if err := read(resp).err; !errors.As(err, &e) || e.Class != errs.Source {
				t.Fatalf("got %v", err)
			}
			want := strings.ToValidUTF8(message, "\ufffd")
			if cut := strings.TrimSuffix(e.Message, "…"); !strings.HasPrefix(want, cut) || len(cut) < min(len(message), 300) {
				t.Errorf("got %d bytes: %.100q", len(e.Message), e.Message)
			}
		})
	}
}

// waitFor polls until cond holds.
func waitFor(t testing.TB, limit time.Duration, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so after %s", limit)
		}
	}
}

// lockedBuffer is a bytes.Buffer for concurrent writers.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
