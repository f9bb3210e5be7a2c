// Package tracing tells an OpenTelemetry collector of queries that have ended.
//
// Spans are made from a query's record once it has ended, so that a query costs nothing where
// nobody collects. A trace joins whoever sent the query (W3C traceparent), the service, the
// host and the member: each is a service of its own in it. Programs open it; the service
// calls Ended.
package tracing

import (
	"context"
	"errors"
	"os"
	"time"

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
	providers []*sdktrace.TracerProvider
	service   trace.Tracer
	host      trace.Tracer
	member    trace.Tracer
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

// Open makes a tracer if the environment asks for one, else returns nil. Close it.
func Open(ctx context.Context, version string) (*Tracer, error) {
	wanted, err := Wanted(os.Getenv)
	if err != nil || !wanted {
		return nil, err
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, errs.New(errs.Invalid, "OpenTelemetry: %w", err).WithHint("see the OTEL_ variables of the environment")
	}
	return newTracer(version, func() sdktrace.TracerProviderOption { return sdktrace.WithBatcher(exporter) }), nil
}

func newTracer(version string, to func() sdktrace.TracerProviderOption) *Tracer {
	t := &Tracer{}
	as := func(name string) trace.Tracer {
		about := resource.NewSchemaless(attribute.String("service.name", name), attribute.String("service.version", version))
		p := sdktrace.NewTracerProvider(to(), sdktrace.WithResource(about))
		t.providers = append(t.providers, p)
		return p.Tracer(scope)
	}
	t.service, t.host, t.member = as("sluice-service"), as("sluice-host"), as("sluice-member")
	return t
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
	at := q.StartedAt
	for _, p := range q.Phases {
		t.phase(ctx, q, p, at)
		at = at.Add(p.Duration)
	}
	if q.State != core.QuerySucceeded {
		span.SetAttributes(attribute.String("error.type", q.ErrorClass), attribute.String("sluice.step", q.ErrorStep))
		span.SetStatus(codes.Error, q.Error)
	}
	span.End(trace.WithTimestamp(q.EndedAt))
}

func (t *Tracer) phase(ctx context.Context, q core.Query, p core.Phase, at time.Time) {
	_, span := t.whose(p.Name).Start(ctx, p.Name, trace.WithTimestamp(at), trace.WithAttributes(attribute.String("sluice.query.id", q.ID)))
	span.End(trace.WithTimestamp(at.Add(p.Duration)))
}

// whose is the tracer of the part of the installation where a phase passes.
func (t *Tracer) whose(phase string) trace.Tracer {
	switch phase {
	case core.PhaseInjected:
		return t.host
	case core.PhaseDialledBack, core.PhaseConnected, core.PhaseExecuted, core.PhaseStreamed:
		return t.member
	}
	return t.service
}
