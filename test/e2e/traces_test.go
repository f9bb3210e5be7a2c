package e2e

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/test/e2e/stack"
)

// preceded returns a view of the installation whose programs start with lines of shell.
func (c *corp) preceded(t *testing.T, lines string) *stack.Stack {
	t.Helper()
	dir, err := os.MkdirTemp(c.Dir, "bin-")
	if err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\nset -e\n" + lines + "\nexec " + filepath.Join(c.Bin, "sluice") + ` "$@"` + "\n"
	if err := os.WriteFile(filepath.Join(dir, "sluice"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	view := c.For(t)
	view.Bin = dir
	return view
}

// span is one that a receiver got, and who it says it is of.
type span struct {
	*tracev1.Span
	service string
}

func (s span) from() time.Time { return time.Unix(0, int64(s.StartTimeUnixNano)) }
func (s span) to() time.Time   { return time.Unix(0, int64(s.EndTimeUnixNano)) }

// receiver is a collector of OTLP over HTTP.
type receiver struct {
	url string

	mu    sync.Mutex
	spans []span
	raw   bytes.Buffer // all that came
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{}
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	r.url = srv.URL
	return r
}

// ServeHTTP implements http.Handler.
func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	var msg collector.ExportTraceServiceRequest
	if err != nil || req.URL.Path != "/v1/traces" || req.Header.Get("Content-Type") != "application/x-protobuf" || proto.Unmarshal(body, &msg) != nil {
		http.Error(w, "that is no trace", http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.raw.Write(body)
	for _, rs := range msg.ResourceSpans {
		var service string
		for _, a := range rs.Resource.GetAttributes() {
			if a.Key == "service.name" {
				service = a.Value.GetStringValue()
			}
		}
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				r.spans = append(r.spans, span{s, service})
			}
		}
	}
	answer, _ := proto.Marshal(&collector.ExportTraceServiceResponse{})
	w.Header().Set("Content-Type", "application/x-protobuf")
	_, _ = w.Write(answer)
}

// trace waits until a trace has a query span and all its parts are there, by name.
func (r *receiver) trace(t *testing.T, id string, parts ...string) map[string]span {
	t.Helper()
	got := map[string]span{}
	eventually(t, 60*time.Second, fmt.Sprintf("trace %s has query and %q", id, parts), func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, s := range r.spans {
			if hex.EncodeToString(s.TraceId) == id {
				got[s.Name] = s
			}
		}
		return !slices.ContainsFunc(append(parts, "query"), func(name string) bool { _, ok := got[name]; return !ok })
	})
	return got
}

// within checks that a span is a child of another and lies in it.
func within(t *testing.T, child, parent span, service string) {
	t.Helper()
	if !bytes.Equal(child.ParentSpanId, parent.SpanId) {
		t.Errorf("%s is not a child of %s", child.Name, parent.Name)
	}
	if child.from().Before(parent.from()) || child.to().After(parent.to()) || child.to().Before(child.from()) {
		t.Errorf("%s, %s to %s, is not within %s, %s to %s", child.Name, child.from(), child.to(), parent.Name, parent.from(), parent.to())
	}
	if child.service != service {
		t.Errorf("%s is of %s, want %s", child.Name, child.service, service)
	}
}

// TestTracesJoinClientServiceHostAndMember: one trace per query, on a real receiver of OTLP.
func TestTracesJoinClientServiceHostAndMember(t *testing.T) {
	busy.take(t)
	r := newReceiver(t)
	c := prepareCorp(t, t, sharedPG(t))
	c.preceded(t, "export OTEL_EXPORTER_OTLP_ENDPOINT="+r.url+" OTEL_BSP_SCHEDULE_DELAY=100").Up()
	c.applyExample()
	api := c.Client()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	const clientSpan = "b7ad6b7169203331"
	ask := func(id, sql string) error {
		res, err := api.Query(ctx, client.Query{Source: source, SQL: sql, Traceparent: "00-" + id + "-" + clientSpan + "-01"}, client.MediaCSV)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}

	t.Run("a query that wakes", func(t *testing.T) {
		const id = "0af7651916cd43dd8448eb211c80319a"
		begun := time.Now()
		if err := ask(id, "select pg_sleep(0.3), 'hush-hush'"); err != nil {
			t.Fatal(err)
		}
		took := time.Since(begun)
		got := r.trace(t, id, "queued", "wake", "leased", "injected", "dialled back", "executed", "streamed")
		root := got["query"]
		if hex.EncodeToString(root.ParentSpanId) != clientSpan || root.service != "sluice-service" || root.Kind != tracev1.Span_SPAN_KIND_SERVER {
			t.Errorf("the query is a %s of %s with the parent %x", root.Kind, root.service, root.ParentSpanId)
		}
		if d := root.to().Sub(root.from()); d < 300*time.Millisecond || d > took || root.from().Before(begun.Add(-time.Millisecond)) {
			t.Errorf("the query took %s from %s, for its client %s from %s", d, root.from(), took, begun)
		}
		for name, service := range map[string]string{"queued": "sluice-service", "wake": "sluice-service", "executed": "sluice-member", "streamed": "sluice-member"} {
			within(t, got[name], root, service)
		}
		for name, service := range map[string]string{"leased": "sluice-service", "injected": "sluice-host", "dialled back": "sluice-member"} {
			within(t, got[name], got["wake"], service)
		}
		for name, s := range got {
			if s.Status.GetCode() == tracev1.Status_STATUS_CODE_ERROR {
				t.Errorf("%s failed: %s", name, s.Status.Message)
			}
		}
		if connected, ok := got["connected"]; ok {
			within(t, connected, root, "sluice-member")
		}
		if got["executed"].from().Before(got["wake"].to()) {
			t.Error("it was executed before the wake had ended")
		}
	})
	t.Run("a query that fails", func(t *testing.T) {
		const id = "0af7651916cd43dd8448eb211c80319b"
		if err := ask(id, "select hushhush"); err == nil || !strings.Contains(err.Error(), "hushhush") {
			t.Fatalf("the client is told %v", err)
		}
		got := r.trace(t, id, "queued", "execute")
		for _, name := range []string{"query", "execute"} {
			if s := got[name].Status; s.GetCode() != tracev1.Status_STATUS_CODE_ERROR || s.GetMessage() != "execute: source" {
				t.Errorf("%s has the status %v", name, s)
			}
		}
		within(t, got["execute"], got["query"], "sluice-member")
		if _, woke := got["wake"]; woke {
			t.Error("the gateway was awake")
		}
	})
	t.Run("a query over Flight SQL", func(t *testing.T) {
		const id = "0af7651916cd43dd8448eb211c80319d"
		cl, fctx := c.on(t).flightClient("authorization", "Bearer "+c.Token(), "sluice-source", source, "traceparent", "00-"+id+"-"+clientSpan+"-01")
		info, err := cl.Execute(fctx, "select 1")
		if err != nil {
			t.Fatal(err)
		}
		rd, err := cl.DoGet(fctx, info.Endpoint[0].Ticket)
		if err != nil {
			t.Fatal(err)
		}
		if rows, err := texts(rd); err != nil || len(rows) != 1 {
			t.Fatalf("%v, %v", rows, err)
		}
		within(t, r.trace(t, id, "streamed")["streamed"], r.trace(t, id)["query"], "sluice-member")
	})
	t.Run("nothing secret is in them", func(t *testing.T) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, secret := range []string{"hush-hush", "hushhush", "pg_sleep", password, c.Token()} {
			if bytes.Contains(r.raw.Bytes(), []byte(secret)) {
				t.Errorf("the receiver got %q", secret)
			}
		}
	})
}

// TestACollectorThatDoesNotAnswerHoldsUpNoQuery, nor the end of the program for long.
func TestACollectorThatDoesNotAnswerHoldsUpNoQuery(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]func(*testing.T) string{
		"it hangs": func(t *testing.T) string {
			end := make(chan struct{})
			srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-end }))
			t.Cleanup(func() { close(end); srv.Close() })
			return srv.URL
		},
		"it is away": func(t *testing.T) string {
			srv := httptest.NewServer(http.NotFoundHandler())
			srv.Close()
			return srv.URL
		},
	} {
		t.Run(name, func(t *testing.T) {
			busy.take(t)
			c := prepareCorp(t, t, sharedPG(t))
			up := c.preceded(t, "export OTEL_EXPORTER_OTLP_ENDPOINT="+url(t)+" OTEL_BSP_SCHEDULE_DELAY=10 OTEL_BSP_MAX_QUEUE_SIZE=8 OTEL_BSP_MAX_EXPORT_BATCH_SIZE=4").Up()
			c.applyExample()
			c.value("select 1")
			api := c.Client()
			for range 30 {
				begun := time.Now()
				if err := tryQuery(t.Context(), api, "select 1"); err != nil {
					t.Fatal(err)
				}
				if d := time.Since(begun); d > 5*time.Second { // half of the exporter's time-out
					t.Errorf("a query took %s", d)
				}
			}
			begun := time.Now()
			c.Stop("up", syscall.SIGTERM)
			if d := time.Since(begun); d > 30*time.Second {
				t.Errorf("the program took %s to end", d)
			}
			if name == "it is away" && strings.Count(up.Log.String(), "the collector of traces does not take them") != 1 {
				t.Error("the log does not say once that the collector is away")
			}
		})
	}
}
