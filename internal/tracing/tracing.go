// Package tracing tells an OpenTelemetry collector of queries that have ended.
//
// Spans are made from a query's record once it has ended, so that a query costs nothing where
// nobody collects. A trace joins whoever sent the query (W3C traceparent), the service, the
// host and the member: each is a service of its own in it. A collector that is slow or away
// holds up nothing: its spans are dropped. Programs open it; the service calls Ended.
package tracing

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// Tracer sends spans in the background.
type Tracer struct {
	statements bool
	providers  []*sdktrace.TracerProvider
	service    trace.Tracer
	host       trace.Tracer
	member     trace.Tracer
}

// scope names what makes the spans.
const scope = "github.com/sluice-gateway/sluice"

// Wanted reports whether the standard environment variables ask for traces, and refuses
// what this program can't do.
func Wanted(env func(string) string) (bool, error) {
	exporter := env("OTEL_TRACES_EXPORTER")
	endpoint := env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") + env("OTEL_EXPORTER_OTLP_ENDPOINT")
	switch {
	case env("OTEL_SDK_DISABLED") == "true", exporter == "none", exporter == "" && endpoint == "":
		return false, nil
	case exporter != "" && exporter != "otlp":
		return false, errs.New(errs.Invalid, "OTEL_TRACES_EXPORTER is %q: only otlp and none are known", exporter)
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		if p := env(name); p != "" && p != "http/protobuf" {
			return false, errs.New(errs.Invalid, "%s is %q: only http/protobuf is spoken", name, p)
		}
	}
	return true, nil
}

// Options of Open.
type Options struct {
	Version string // Required: of this program
	// Statements puts statements, and data sources' errors, which may quote them, into spans.
	Statements bool
	Logger     *slog.Logger // Required
}

// Open makes a tracer if the environment asks for one, else returns nil. Close it.
func Open(ctx context.Context, opts Options) (*Tracer, error) {
	wanted, err := Wanted(os.Getenv)
	if err != nil || !wanted {
		return nil, err
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, errs.New(errs.Invalid, "OpenTelemetry: %w", err).WithHint("see the OTEL_ variables of the environment")
	}
	told := &outages{SpanExporter: exporter, log: opts.Logger}
	return newTracer(opts, func() sdktrace.TracerProviderOption { return sdktrace.WithBatcher(told) }), nil
}

func newTracer(opts Options, to func() sdktrace.TracerProviderOption) *Tracer {
	t := &Tracer{statements: opts.Statements}
	as := func(name string) trace.Tracer {
		about := resource.NewSchemaless(attribute.String("service.name", name), attribute.String("service.version", opts.Version))
		p := sdktrace.NewTracerProvider(to(), sdktrace.WithResource(about))
		t.providers = append(t.providers, p)
		return p.Tracer(scope)
	}
	t.service, t.host, t.member = as("sluice-service"), as("sluice-host"), as("sluice-member")
	return t
}

// outages says once that a collector takes no spans, and once that it does again.
type outages struct {
	sdktrace.SpanExporter
	log *slog.Logger

	mu   sync.Mutex
	lost int // spans since it was last there
}

// ExportSpans implements sdktrace.SpanExporter. What a collector does not take is lost.
func (o *outages) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := o.SpanExporter.ExportSpans(ctx, spans)
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case err != nil:
		if o.lost == 0 {
			o.log.Warn("the collector of traces does not take them: they are lost until it does", "error", err)
		}
		o.lost += len(spans)
	case o.lost > 0:
		o.log.Info("the collector of traces takes them again", "lost", o.lost)
		o.lost = 0
	}
	return nil
}

// Close sends what is left.
func (t *Tracer) Close(ctx context.Context) error {
	var all error
	for _, p := range t.providers {
		all = errors.Join(all, p.ForceFlush(ctx))
	}
	for _, p := range t.providers {
		all = errors.Join(all, p.Shutdown(ctx))
	}
	return all
}

// Ended makes the spans of a query. Traceparent is what its client sent; without one the
// query is a trace of its own.
func (t *Tracer) Ended(q core.Query, traceparent string) {
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": traceparent})
	ctx, span := t.service.Start(ctx, "query", trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(q.StartedAt),
		trace.WithAttributes(
			attribute.String("sluice.query.id", q.ID), attribute.String("sluice.tenant", string(q.Tenant)),
			attribute.String("sluice.source", q.Source), attribute.String("sluice.gateway", q.Gateway),
			attribute.String("sluice.class", string(q.Class)), attribute.String("sluice.state", string(q.State)),
			attribute.String("sluice.member", q.Member), attribute.Int64("sluice.rows", q.Rows), attribute.Int64("sluice.bytes", q.Bytes),
			attribute.Int("sluice.queued_behind", q.QueuedBehind), attribute.String("sluice.retried", q.Retried),
		))
	if t.statements && q.SQL != "" {
		span.SetAttributes(attribute.String("db.query.text", q.SQL))
	}
	wake := ctx
	for _, p := range partsOf(q) {
		within := ctx
		if p.ofWake {
			within = wake
		}
		inside := t.part(within, q, p)
		if p.name == partWake {
			wake = inside //nolint:fatcontext // one part of a query is its wake
		}
	}
	if q.State != core.QuerySucceeded {
		span.SetAttributes(attribute.String("error.type", q.ErrorClass), attribute.String("sluice.step", q.ErrorStep))
		span.SetStatus(codes.Error, t.described(q))
	}
	span.End(trace.WithTimestamp(q.EndedAt))
}

// part makes the span of a part, and returns the context of what is within.
func (t *Tracer) part(ctx context.Context, q core.Query, p part) context.Context {
	of := map[place]trace.Tracer{inService: t.service, onHost: t.host, inMember: t.member}[p.at]
	ctx, span := of.Start(ctx, p.name, trace.WithTimestamp(p.from), trace.WithAttributes(attribute.String("sluice.query.id", q.ID)))
	if q.Member != "" && p.at != inService {
		span.SetAttributes(attribute.String("sluice.member", q.Member))
	}
	if p.failed {
		span.SetAttributes(attribute.String("error.type", q.ErrorClass))
		span.SetStatus(codes.Error, t.described(q))
	}
	span.End(trace.WithTimestamp(p.to))
	return ctx
}

// described says how a query failed. A data source's own words may quote its statement.
func (t *Tracer) described(q core.Query) string {
	if t.statements {
		return q.Error
	}
	return q.ErrorStep + ": " + q.ErrorClass
}
