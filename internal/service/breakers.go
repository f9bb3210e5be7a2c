package service

import (
	"context"
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-gateway/sluice/internal/breaker"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// breakers are those of the data sources that could not be reached lately.
type breakers struct {
	now     func() time.Time
	tracked atomic.Int64 // how many there are: none, mostly
	mu      sync.Mutex
	of      map[string]*sourceBreaker // by the data source's UID
}

// sourceBreaker is the breaker of one data source.
type sourceBreaker struct {
	breaker.Breaker
	tenant core.TenantID
	name   string
}

func newBreakers(now func() time.Time) *breakers {
	return &breakers{now: now, of: map[string]*sourceBreaker{}}
}

// allow returns why a data source is not tried now, or nil; then learn must follow.
func (b *breakers) allow(tgt target) error {
	if b.tracked.Load() == 0 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	one, now := b.of[tgt.uid], b.now()
	if one == nil || one.Allow(now) {
		return nil
	}
	s := one.Status(now)
	wait := max(s.Next.Sub(now), time.Second)
	return errs.New(errs.Unavailable, "data source %s is not tried now: the last %d connections to it failed, the last one %s ago: %s",
		tgt.source.Name, s.Failures, now.Sub(s.Last).Round(time.Millisecond), s.Reason).
		WithStep(errs.StepConnect).WithRetryAfter(wait).On(objectName(core.KindDataSource, tgt.source.Name), "").
		WithHint("it is tried again in %s; \"sluice datasource test %s\" tries now", wait.Round(100*time.Millisecond), tgt.source.Name)
}

// learn takes what came of a query that was allowed.
func (b *breakers) learn(tgt target, err error) {
	verdict := verdictOf(err)
	if verdict != unreachable && b.tracked.Load() == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	one := b.of[tgt.uid]
	switch {
	case verdict == unreachable:
		if one == nil {
			one = &sourceBreaker{tenant: tgt.gateway.Tenant, name: tgt.source.Name}
			b.of[tgt.uid] = one
		}
		one.Failed(b.now(), err.Error())
	case one == nil:
	case verdict == reached:
		delete(b.of, tgt.uid)
	default:
		one.Unknown()
	}
	b.tracked.Store(int64(len(b.of)))
}

// reset forgets a tenant's: what it declares has changed, and that may have been the cause.
func (b *breakers) reset(t core.TenantID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.of, func(_ string, one *sourceBreaker) bool { return one.tenant == t })
	b.tracked.Store(int64(len(b.of)))
}

// status tells how the breaker of a data source stands.
func (b *breakers) status(uid string) breaker.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	if one := b.of[uid]; one != nil {
		return one.Status(b.now())
	}
	return breaker.Status{State: breaker.Available}
}

// each tells of every data source that could not be reached lately.
func (b *breakers) each(tell func(t core.TenantID, name string, s breaker.Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, one := range b.of {
		tell(one.tenant, one.name, one.Status(b.now()))
	}
}

// reachable tells that a test reached a data source.
func (s *Service) reachable(ctx context.Context, name string) {
	p, err := caller(ctx)
	if err != nil {
		return
	}
	if tgt, err := s.target(ctx, p.Tenant, name); err == nil {
		s.breakers.learn(tgt, nil)
	}
}

// SourceStatus is the status of a data source.
type SourceStatus struct {
	ResourceStatus
	State    breaker.State `json:"state"` // Available, Down, Trying
	Reason   string        `json:"reason,omitempty"`
	Failures int           `json:"failures,omitempty"` // connections in a row
	Since    time.Time     `json:"since,omitzero"`     // of the first of them
	NextTry  time.Time     `json:"nextTry,omitzero"`
}

func (s *Service) sourceStatus(uid string, base ResourceStatus) SourceStatus {
	b := s.breakers.status(uid)
	return SourceStatus{ResourceStatus: base, State: b.State, Reason: b.Reason, Failures: b.Failures, Since: b.Since, NextTry: b.Next}
}

// What a query's end says of its data source.
type verdict int

const (
	nothing verdict = iota
	reached
	unreachable
)

// verdictOf draws it: only connections that did not come about count against a source.
func verdictOf(err error) verdict {
	if err == nil {
		return reached
	}
	var no *denial
	e := errs.As(err)
	switch {
	case errors.As(err, &no):
		return nothing
	case e.Class == errs.Unavailable && (e.Step == errs.StepConnect || e.Step == errs.StepTLS || e.Step == errs.StepSignIn):
		return unreachable // behind a private endpoint a source that is down cuts connections later
	case e.Class == errs.Source || e.Step == errs.StepSignIn || e.Step == errs.StepExecute && e.Class != errs.Cancelled && e.Class != errs.Timeout:
		return reached
	}
	return nothing
}
