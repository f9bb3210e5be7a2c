package service

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/fleet"
)

// inFlight are the queries that run or wait, by ID.
type inFlight struct {
	mu sync.Mutex
	of map[string]*running
}

func (f *inFlight) put(q *running) {
	f.mu.Lock()
	f.of[q.rec.ID] = q
	f.mu.Unlock()
}

func (f *inFlight) remove(id string) {
	f.mu.Lock()
	delete(f.of, id)
	f.mu.Unlock()
}

func (f *inFlight) find(id string) *running {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.of[id]
}

// place is where a query waits.
type place struct {
	gatewayUID string
	class      core.QueryClass
}

// queued notes that a query has to wait.
func (q *running) queued(req fleet.Request) func(ahead int) {
	return func(ahead int) {
		q.rec.QueuedBehind = ahead
		q.waits.Store(&place{req.Gateway.UID, req.Class})
	}
}

// CancelQuery implements Frontend.
func (s *Service) CancelQuery(ctx context.Context, id string) error {
	p, err := caller(ctx)
	if err != nil {
		return err
	}
	q := s.inFlight.find(id)
	if q == nil || q.tenant != p.Tenant {
		rec, err := s.QueryRecord(ctx, id)
		if err != nil {
			return err
		}
		return errs.New(errs.Conflict, "query %s has ended already: %s", id, rec.State).On(KindQuery+"/"+id, "")
	}
	q.stopped.CompareAndSwap(nil, errs.New(errs.Cancelled, "the query was cancelled by %s", p.Name))
	q.stop()
	return nil
}

// cut ends a query whose slot is given to others.
func (q *running) cut(idle time.Duration) {
	q.stopped.CompareAndSwap(nil, errs.New(errs.Cancelled, "the client took nothing of the result for %s while other users waited for its slot, and was cut off",
		idle.Round(time.Second)).WithHint("read faster, or fewer results at a time: stalled results of one user hold at most half of the slots while others wait"))
	q.stop()
}

// because returns why a query ended: that it was cancelled on demand, if it was.
func (q *running) because(err error) error {
	if e := q.stopped.Load(); err != nil && e != nil {
		out := *e
		out.Step = errs.As(err).Step
		return &out
	}
	return err
}

// showQueued turns the records of those queries that wait into what they are at this moment.
func (s *Service) showQueued(records []core.Query) {
	orders := map[place][]string{}
	for i, rec := range records {
		if rec.State != core.QueryRunning {
			continue
		}
		q := s.inFlight.find(rec.ID)
		if q == nil {
			continue
		}
		at := q.waits.Load()
		if at == nil {
			continue
		}
		order, known := orders[*at]
		if !known {
			order = s.opts.Fleet.Order(at.gatewayUID, at.class, func(r fleet.Request) string { return r.ID })
			orders[*at] = order
		}
		if n := slices.Index(order, rec.ID); n >= 0 {
			records[i].State, records[i].QueuePosition = core.QueryQueued, n+1
		}
	}
}
