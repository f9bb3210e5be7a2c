package tracing

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/sluice-gateway/sluice/internal/core"
)

func record() core.Query {
	at := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	return core.Query{
		ID: "q-1", Source: "orders", State: core.QueryFailed, StartedAt: at, EndedAt: at.Add(7 * time.Millisecond), Error: "division by zero",
		SQL: "select secret",
		Phases: []core.Phase{
			{Name: core.PhaseQueued, Duration: time.Millisecond}, {Name: core.PhaseInjected, Duration: 2 * time.Millisecond},
			{Name: core.PhaseExecuted, Duration: 4 * time.Millisecond},
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
			tr := newTracer("test", func() sdktrace.TracerProviderOption { return sdktrace.WithSyncer(kept) })
			tr.Ended(record(), tt.parent)
			spans := kept.GetSpans()
			root := spans[len(spans)-1]
			if tt.trace != "" && root.SpanContext.TraceID().String() != tt.trace || root.Parent.SpanID().String() != tt.span {
				t.Errorf("the query has the trace %s and the parent %s", root.SpanContext.TraceID(), root.Parent.SpanID())
			}
			if root.Status.Description != "division by zero" {
				t.Errorf("status %+v", root.Status)
			}
			var got []string
			for _, s := range spans {
				who, _ := s.Resource.Set().Value("service.name")
				child := s.Parent.SpanID() == root.SpanContext.SpanID() && s.SpanContext.TraceID() == root.SpanContext.TraceID()
				got = append(got, fmt.Sprintf("%s %s %s+%s %v", who.AsString(), s.Name, s.StartTime.Sub(root.StartTime), s.EndTime.Sub(s.StartTime), child))
				if strings.Contains(fmt.Sprint(s.Attributes), "secret") {
					t.Error("a span holds the statement")
				}
			}
			want := []string{"sluice-service queued 0s+1ms true", "sluice-host injected 1ms+2ms true", "sluice-member executed 3ms+4ms true", "sluice-service query 0s+7ms false"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

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
	tr, err := Open(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	tr.Ended(record(), "")
	_ = tr.Close(ctx) // the providers share an exporter, which is shut down more than once
	if posts.Load() == 0 || size.Load() < 100 {
		t.Errorf("the collector got %d posts of %d bytes", posts.Load(), size.Load())
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	if off, err := Open(ctx, "test"); off != nil || err != nil {
		t.Errorf("nobody asked for traces: %v, %v", off, err)
	}
}
