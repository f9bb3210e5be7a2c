package tracing

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

func record() core.Query {
	at := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	return core.Query{
		ID: "q-1", Source: "orders", State: core.QueryFailed, StartedAt: at, EndedAt: at.Add(9 * time.Millisecond),
		Error: "syntax error at or near \"secret\"", ErrorStep: errs.StepExecute, ErrorClass: string(errs.Invalid), SQL: "select secret", Member: "m-1",
		Phases: []core.Phase{
			{Name: core.PhaseQueued, Duration: time.Millisecond}, {Name: core.PhaseInjected, Duration: 2 * time.Millisecond},
			{Name: core.PhaseDialledBack, Duration: 3 * time.Millisecond},
		},
	}
}

func TestSpansJoinClientServiceHostAndMember(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, tt := range []struct{ name, parent, trace, span string }{
		{"with a client's trace", parent, "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"},
		{"without", "", "", "0000000000000000"},
		{"with what is none", "garbage", "", "0000000000000000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			kept := tracetest.NewInMemoryExporter()
			tr := newTracer(Options{Version: "test"}, func() sdktrace.TracerProviderOption { return sdktrace.WithSyncer(kept) })
			tr.Ended(record(), tt.parent)
			spans := kept.GetSpans()
			root := spans[len(spans)-1]
			if tt.trace != "" && root.SpanContext.TraceID().String() != tt.trace || root.Parent.SpanID().String() != tt.span {
				t.Errorf("the query has the trace %s and the parent %s", root.SpanContext.TraceID(), root.Parent.SpanID())
			}
			if root.Status.Description != "execute: invalid" {
				t.Errorf("status %+v", root.Status)
			}
			names := map[trace.SpanID]string{root.SpanContext.SpanID(): "query"}
			for _, s := range spans {
				names[s.SpanContext.SpanID()] = s.Name
			}
			var got []string
			for _, s := range spans {
				who, _ := s.Resource.Set().Value("service.name")
				if s.SpanContext.TraceID() != root.SpanContext.TraceID() {
					t.Errorf("%s is of another trace", s.Name)
				}
				got = append(got, fmt.Sprintf("%s %s %s+%s of %s %s", who.AsString(), s.Name, s.StartTime.Sub(root.StartTime), s.EndTime.Sub(s.StartTime), names[s.Parent.SpanID()], s.Status.Code))
				if strings.Contains(fmt.Sprint(s.Attributes, s.Status), "secret") {
					t.Error("a span holds the statement, or a part of it")
				}
			}
			want := []string{
				"sluice-service queued 0s+1ms of query Unset", "sluice-service wake 1ms+5ms of query Unset",
				"sluice-host injected 1ms+2ms of wake Unset", "sluice-member dialled back 3ms+3ms of wake Unset",
				"sluice-member execute 6ms+3ms of query Error", "sluice-service query 0s+9ms of  Error",
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestStatementsIfTheyAreWanted(t *testing.T) {
	kept := tracetest.NewInMemoryExporter()
	tr := newTracer(Options{Version: "test", Statements: true}, func() sdktrace.TracerProviderOption { return sdktrace.WithSyncer(kept) })
	tr.Ended(record(), "")
	spans := kept.GetSpans()
	root := spans[len(spans)-1]
	if text := fmt.Sprint(root.Attributes); !strings.Contains(text, "select secret") || !strings.Contains(root.Status.Description, "syntax error") {
		t.Errorf("attributes %s, status %+v", text, root.Status)
	}
}

// TestPartsOf: each case is phases as NAME:MS, the length of the query in ms and the step that
// failed, and the parts as NAME@PLACE:FROM-TO, > for those of a wake and ! for what failed.
func TestPartsOf(t *testing.T) {
	for _, tt := range []struct {
		name, phases string
		ms           int
		step, want   string
	}{
		{"straight", "queued:0 executed:3 streamed:2", 5, "", "queued@0:0-0 executed@2:0-3 streamed@2:3-5"},
		{"with a wake", "queued:1 leased:2 injected:3 dialledback:4 connected:1 executed:1 streamed:1", 13, "",
			"queued@0:0-1 wake@0:1-10 >leased@0:1-3 >injected@1:3-6 >dialledback@2:6-10 connected@2:10-11 executed@2:11-12 streamed@2:12-13"},
		{"run again after a second wake", "queued:1 leased:1 retried:2 queued:1 dialledback:2 executed:1 streamed:1", 9, "",
			"queued@0:0-1 wake@0:1-2 >leased@0:1-2 retried@0:2-4 queued@0:4-5 wake@0:5-7 >dialledback@2:5-7 executed@2:7-8 streamed@2:8-9"},
		{"clocks that disagree", "queued:1 executed:9 streamed:1", 5, "", "queued@0:0-1 executed@2:1-5 streamed@2:5-5"},
		{"refused", "", 2, "admit", ""},
		{"gave up in the line", "", 2, "queue", "!queue@0:0-2"},
		{"the wake failed", "", 4, "wake", "!wake@0:0-4"},
		{"the source is down", "queued:1 leased:1", 9, "connect", "queued@0:0-1 wake@0:1-2 >leased@0:1-2 !connect@2:2-9"},
		{"the source refuses", "queued:1", 9, "execute", "queued@0:0-1 !execute@2:1-9"},
		{"the member was lost in the middle", "queued:1 executed:1 streamed:3", 5, "stream", "queued@0:0-1 executed@2:1-2 !streamed@2:2-5"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := time.Unix(0, 0)
			q := core.Query{StartedAt: at, EndedAt: at.Add(time.Duration(tt.ms) * time.Millisecond), State: core.QuerySucceeded, ErrorStep: tt.step}
			if tt.step != "" {
				q.State = core.QueryFailed
			}
			for f := range strings.FieldsSeq(tt.phases) {
				name, ms, _ := strings.Cut(f, ":")
				n, _ := strconv.Atoi(ms)
				q.Phases = append(q.Phases, core.Phase{Name: strings.Replace(name, "dialledback", core.PhaseDialledBack, 1), Duration: time.Duration(n) * time.Millisecond})
			}
			var got []string
			for _, p := range partsOf(q) {
				mark := map[bool]string{true: ">"}[p.ofWake] + map[bool]string{true: "!"}[p.failed]
				got = append(got, fmt.Sprintf("%s%s@%d:%d-%d", mark, strings.ReplaceAll(p.name, " ", ""), p.at, p.from.Sub(at).Milliseconds(), p.to.Sub(at).Milliseconds()))
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestACollectorThatHangsHoldsUpNothing: more spans than the queue holds, at once.
func TestACollectorThatHangsHoldsUpNothing(t *testing.T) {
	end := make(chan struct{})
	collector := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-end }))
	defer collector.Close()
	defer close(end)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	tr, err := Open(t.Context(), Options{Version: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	for range 10_000 {
		tr.Ended(record(), "")
	}
	if d := time.Since(begun); d > 8*time.Second { // less than one time-out of the exporter
		t.Errorf("10,000 queries waited for %s", d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_ = tr.Close(ctx)
	if d := time.Since(begun); d > 9*time.Second {
		t.Errorf("the end waited for %s", d)
	}
}

// TestOutagesAreSaidOnce, and their end.
func TestOutagesAreSaidOnce(t *testing.T) {
	var said strings.Builder
	fake := &faulty{err: errors.New("connection refused")}
	o := &outages{SpanExporter: fake, log: slog.New(slog.NewTextHandler(&said, nil))}
	spans := tracetest.SpanStubs{{}, {}}.Snapshots()
	for _, err := range []error{fake.err, fake.err, nil, nil} {
		fake.err = err
		if err := o.ExportSpans(t.Context(), spans); err != nil {
			t.Errorf("the outage is the exporter's own matter: %v", err)
		}
	}
	if out := said.String(); strings.Count(out, "level=WARN") != 1 || strings.Count(out, "level=INFO") != 1 || !strings.Contains(out, "lost=4") {
		t.Errorf("it said:\n%s", out)
	}
}

type faulty struct{ err error }

func (f *faulty) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return f.err }
func (f *faulty) Shutdown(context.Context) error                             { return nil }

func TestWanted(t *testing.T) {
	for _, tt := range []struct {
		env  string // NAME=VALUE, several
		want bool
		fail string
	}{
		{"", false, ""},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=http://x:4318", true, ""},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://x:4318/v1/traces", true, ""},
		{"OTEL_TRACES_EXPORTER=otlp", true, ""},
		{"OTEL_TRACES_EXPORTER=none OTEL_EXPORTER_OTLP_ENDPOINT=http://x:4318", false, ""},
		{"OTEL_SDK_DISABLED=true OTEL_EXPORTER_OTLP_ENDPOINT=http://x:4318", false, ""},
		{"OTEL_TRACES_EXPORTER=zipkin", false, "zipkin"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=http://x:4317 OTEL_EXPORTER_OTLP_PROTOCOL=grpc", false, "http/protobuf"},
	} {
		got, err := Wanted(func(name string) string {
			for pair := range strings.FieldsSeq(tt.env) {
				if v, ok := strings.CutPrefix(pair, name+"="); ok {
					return v
				}
			}
			return ""
		})
		if got != tt.want || (err != nil) != (tt.fail != "") || err != nil && !strings.Contains(err.Error(), tt.fail) {
			t.Errorf("%q: %v, %v", tt.env, got, err)
		}
	}
}

// TestOpen sends a trace to a collector that the environment names.
func TestOpen(t *testing.T) {
	var posts, size atomic.Int64
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path == "/v1/traces" {
			posts.Add(1)
			size.Add(int64(len(body)))
		}
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tr, err := Open(ctx, Options{Version: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	tr.Ended(record(), "")
	_ = tr.Close(ctx) // the providers share an exporter, which is shut down more than once
	if posts.Load() == 0 || size.Load() < 100 {
		t.Errorf("the collector got %d posts of %d bytes", posts.Load(), size.Load())
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	if off, err := Open(ctx, Options{Version: "test", Logger: slog.New(slog.DiscardHandler)}); off != nil || err != nil {
		t.Errorf("nobody asked for traces: %v, %v", off, err)
	}
}
