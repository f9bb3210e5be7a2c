package service

import (
	"context"
	"hash/maphash"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/fleet"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// bounds are what one query may take.
type bounds struct {
	timeout time.Duration // 0: no bound
	maxRows int64         // 0: no bound
	stall   time.Duration
}

// forEver stands for a bound that is not there, where a time is needed.
const forEver = 10 * 365 * 24 * time.Hour

// bodyOf makes the path and the document of a request to a member.
type bodyOf func(queryID string, src memberapi.Source, b bounds) (string, any)

// boundsOf joins what a client asks for with the limits of its class.
func boundsOf(in QueryInput, l core.ClassLimits) bounds {
	b := bounds{timeout: in.Timeout, maxRows: max(l.MaxRows, 0), stall: time.Duration(l.Stall)}
	if l.Stall == core.Never {
		b.stall = forEver
	}
	if l.Timeout != core.Never && (b.timeout == 0 || b.timeout > time.Duration(l.Timeout)) {
		b.timeout = time.Duration(l.Timeout)
	}
	return b
}

// context bounds a query: by a little more than the member does, so that the member's
// error, which names the step, comes first.
func (b bounds) context(ctx context.Context) (context.Context, context.CancelFunc) {
	if b.timeout > 0 {
		return context.WithTimeout(ctx, withGrace(b.timeout))
	}
	return context.WithCancel(ctx)
}

// request asks for a member for a principal's work.
func (t *target) request(p core.Principal, class core.QueryClass) fleet.Request {
	r := fleet.Request{Gateway: t.gateway, Class: class, User: p.Name, Source: t.source.Name}
	if class != "" {
		r.Limits = t.spec.Limits(class)
	}
	return r
}

// statementSeed makes the numbers of statements those of this process alone.
var statementSeed = maphash.MakeSeed()

// statement returns a number that stands for what a query asks of which source; never 0.
func statement(in QueryInput) uint64 {
	return (maphash.String(statementSeed, in.SQL) ^ maphash.String(statementSeed, in.Source)) | 1
}

// Stalled is the error of a query whose client was cut off because it took nothing of its
// result for longer than its class allows.
func Stalled(after time.Duration) error {
	return errs.New(errs.Cancelled, "the client took nothing of the result for %s and was cut off", after).WithStep(errs.StepStream).
		WithHint("read faster, or raise classes.CLASS.stall of the gateway")
}
