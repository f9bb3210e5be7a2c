package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/fleet"
	"github.com/sluice-gateway/sluice/internal/ident"
	"github.com/sluice-gateway/sluice/internal/store"
)

// running is one query in flight and its record.
type running struct {
	svc   *Service
	rec   core.Query
	mark  time.Time // the end of the last phase
	first time.Time // when the member's answer began
	done  bool

	tenant  core.TenantID // as in rec, which only the query's own goroutine may look at
	user    string
	parent  string // QueryInput.Traceparent
	stop    context.CancelFunc
	stopped atomic.Pointer[errs.Error] // who cancelled it
	waits   atomic.Pointer[place]      // while it waits for a member
}

func (s *Service) begin(p core.Principal, source string, in QueryInput) *running {
	class := in.Class
	if class == "" {
		class = core.ClassInteractive
	}
	now := s.now()
	sql, sum := s.recorded(in.SQL)
	q := &running{svc: s, mark: now, tenant: p.Tenant, user: p.Name, parent: in.Traceparent, rec: core.Query{
		ID: ident.New("q"), Tenant: p.Tenant, User: p.Name, Source: source, SQL: sql, SQLHash: sum,
		Class: class, State: core.QueryRunning, StartedAt: now,
	}}
	s.queries.put(q.rec)
	return q
}

// recorded is what a record keeps of a statement: itself or its hash.
func (s *Service) recorded(sql string) (text, sum string) {
	switch s.opts.RecordSQL {
	case RecordHash:
		return "", "sha256:" + hexString(hash(sql)[:16])
	case RecordNone:
		return "", ""
	case RecordFull:
	}
	return sql, ""
}

func (q *running) phase(name string, d time.Duration) {
	q.rec.Phases = append(q.rec.Phases, core.Phase{Name: name, Duration: max(d, 0)})
}

// granted ends the wait for a member: what was not part of a wake was queueing.
func (q *running) granted(g fleet.Grant) {
	now := q.svc.now()
	q.waits.Store(nil)
	waited := now.Sub(q.mark)
	for _, p := range g.Wake {
		waited -= p.Duration
	}
	q.phase(core.PhaseQueued, waited)
	q.rec.Phases = append(q.rec.Phases, g.Wake...)
	q.rec.Member, q.rec.Address, q.mark = g.Member.ID, g.Member.Address, now
}

// again notes that a member was lost before its answer.
func (q *running) again(m core.Member, because error) {
	now := q.svc.now()
	q.phase(core.PhaseRetried, now.Sub(q.mark))
	q.mark = now
	q.rec.Retried = fmt.Sprintf("member %s: %s", m.ID, strings.TrimPrefix(because.Error(), "member "+m.ID+": "))
	q.svc.log.Warn("query runs again", "query", q.rec.ID, "member", m.ID, "reason", because)
}

// answered is called when the first bytes of the result are there.
func (q *running) answered() { q.first = q.svc.now() }

// streamed takes what the body and the member counted.
func (q *running) streamed(b *resultBody) {
	q.rec.Bytes, q.rec.Rows = b.bytes, b.stats.Rows
	now := q.svc.now()
	if b.stats.Connect > 0 {
		q.phase(core.PhaseConnected, b.stats.Connect)
	}
	executed := b.stats.Execute
	if executed == 0 {
		executed = q.first.Sub(q.mark)
	}
	q.phase(core.PhaseExecuted, executed)
	q.phase(core.PhaseStreamed, now.Sub(q.mark)-b.stats.Connect-executed)
}

// finish ends the record; only the first call counts.
func (q *running) finish(err error) core.Query {
	if q.done {
		return q.rec
	}
	q.done = true
	q.svc.inFlight.remove(q.rec.ID)
	q.rec.EndedAt = q.svc.now()
	q.rec.State = core.QuerySucceeded
	if err != nil {
		e := errs.As(err)
		q.rec.State, q.rec.Error = core.QueryFailed, e.Message
		q.rec.ErrorClass, q.rec.ErrorStep = string(e.Class), e.Step
		if e.Class == errs.Cancelled {
			q.rec.State = core.QueryCancelled
		}
		q.svc.log.Info("query failed", "query", q.rec.ID, "source", q.rec.Source, "step", e.Step, "class", e.Class, "error", e.Message)
	}
	q.svc.metrics.ended(q.rec)
	q.svc.queries.put(q.rec)
	if q.svc.opts.Trace != nil {
		q.svc.opts.Trace(q.rec, q.parent)
	}
	return q.rec
}

// queryLog writes records in batches, so that a short query does not wait for a disk.
type queryLog struct {
	store store.Store
	log   *slog.Logger
	keep  time.Duration
	purge func(store.Tx) error // what else is old
	sink  func([]core.Query) error

	mu      sync.Mutex
	pending map[string]core.Query // the newest of each ID
	ended   []core.Query          // not in the sink yet
	lost    int

	flushing sync.Mutex // batches reach the store in the order in which they were taken

	wake chan struct{}
	stop chan struct{}
	wg   sync.WaitGroup
}

// Bounds of the log: how long a record may wait, and how many while the store fails.
const (
	logDelay   = 50 * time.Millisecond
	logPending = 50_000
)

func newQueryLog(st store.Store, log *slog.Logger, keep time.Duration, purge func(store.Tx) error, sink func([]core.Query) error) *queryLog {
	l := &queryLog{
		store: st, log: log, keep: keep, purge: purge, sink: sink,
		pending: map[string]core.Query{}, wake: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	l.wg.Go(l.run)
	return l
}

func (l *queryLog) put(q core.Query) {
	l.mu.Lock()
	if _, ok := l.pending[q.ID]; ok || len(l.pending) < logPending {
		l.pending[q.ID] = q
	} else {
		l.lost++
	}
	if l.sink != nil && q.State != core.QueryRunning && len(l.ended) < logPending {
		l.ended = append(l.ended, q)
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// find returns a record that is not written yet.
func (l *queryLog) find(t core.TenantID, id string) (core.Query, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q, ok := l.pending[id]
	return q, ok && q.Tenant == t
}

func (l *queryLog) run() {
	purge := time.NewTicker(time.Hour)
	defer purge.Stop()
	for {
		select {
		case <-l.stop:
			l.flush()
			return
		case <-l.wake:
			select {
			case <-time.After(logDelay):
			case <-l.stop:
			}
			l.flush()
		case <-purge.C:
			before := time.Now().Add(-l.keep)
			l.write(func(tx store.Tx) error { return errors.Join(tx.PurgeQueries(before), l.purge(tx)) })
		}
	}
}

// flush writes what is pending. What can't be written waits for the next turn.
func (l *queryLog) flush() {
	l.flushing.Lock()
	defer l.flushing.Unlock()
	l.mu.Lock()
	batch := make([]core.Query, 0, len(l.pending))
	for _, q := range l.pending {
		batch = append(batch, q)
	}
	lost, ended := l.lost, l.ended
	l.lost, l.ended = 0, nil
	l.mu.Unlock()
	if len(ended) > 0 {
		if err := l.sink(ended); err != nil {
			l.log.Error("query records are missing in the file", "records", len(ended), "error", err)
		}
	}
	if lost > 0 {
		l.log.Error("query records were lost because the store can't be written", "records", lost)
	}
	if len(batch) == 0 {
		return
	}
	if !l.write(func(tx store.Tx) error { return tx.PutQueries(batch) }) {
		time.AfterFunc(time.Second, func() {
			select {
			case l.wake <- struct{}{}:
			default:
			}
		})
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, q := range batch {
		if now, ok := l.pending[q.ID]; ok && now.State == q.State {
			delete(l.pending, q.ID)
		}
	}
}

func (l *queryLog) write(fn func(store.Tx) error) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := l.store.Write(ctx, fn); err != nil {
		l.log.Warn("the query log can't be written, will try again", "error", err)
		return false
	}
	return true
}

func (l *queryLog) close() {
	close(l.stop)
	l.wg.Wait()
}

// QueryRecord implements Frontend.
func (s *Service) QueryRecord(ctx context.Context, id string) (core.Query, error) {
	p, err := caller(ctx)
	if err != nil {
		return core.Query{}, err
	}
	one := make([]core.Query, 1)
	if q, ok := s.queries.find(p.Tenant, id); ok {
		one[0] = q
	} else {
		err = s.opts.Store.Read(ctx, func(tx store.Tx) (err error) {
			one[0], err = tx.GetQuery(p.Tenant, id)
			return err
		})
	}
	s.showQueued(one)
	return one[0], err
}

// QueryRecords implements Frontend: the newest first.
func (s *Service) QueryRecords(ctx context.Context, source string, limit int) ([]core.Query, error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	s.queries.flush()
	var out []core.Query
	err = s.opts.Store.Read(ctx, func(tx store.Tx) (err error) {
		out, err = tx.ListQueries(p.Tenant, store.QueryFilter{Source: source, Limit: limit})
		return err
	})
	s.showQueued(out)
	return out, err
}
