package flightsql

import (
	"container/list"
	"sync"
	"time"

	"github.com/apache/arrow-go/v18/arrow/flight"
	pb "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/ident"
	"github.com/sluice-gateway/sluice/internal/service"
)

// The bounds of one principal's prepared statements. Beyond them the one that was
// unused for the longest time is forgotten: some clients never close theirs.
const (
	maxPrepared      = 1000
	maxPreparedBytes = 64 << 20
)

// statement is a prepared statement. It is replaced, never changed.
type statement struct {
	id      string
	source  string
	class   core.QueryClass
	sql     string
	dataset []byte // schema message, nil for a statement without rows
	params  []byte // what was bound, as an Arrow IPC stream
	binding int64  // counts what was bound
	used    time.Time
}

func (st statement) size() int { return len(st.sql) + len(st.dataset) + len(st.params) + 512 }

// owner is one principal's statements, the most recently used first.
type owner struct {
	byID   map[string]*list.Element
	recent *list.List
	bytes  int
}

// registry keeps prepared statements. Handles are worth nothing to another principal.
type registry struct {
	idle time.Duration
	now  func() time.Time

	mu     sync.Mutex
	owners map[core.Principal]*owner
}

func newRegistry(idle time.Duration, now func() time.Time) *registry {
	return &registry{idle: idle, now: now, owners: map[core.Principal]*owner{}}
}

// add keeps a new statement and returns its handle.
func (r *registry) add(p core.Principal, st statement) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire()
	o := r.owners[p]
	if o == nil {
		o = &owner{byID: map[string]*list.Element{}, recent: list.New()}
		r.owners[p] = o
	}
	st.id, st.used = ident.New("s"), r.now()
	o.put(st)
	return []byte(st.id)
}

func (o *owner) put(st statement) {
	o.drop(st.id)
	o.byID[st.id] = o.recent.PushFront(st)
	o.bytes += st.size()
	for o.recent.Len() > 1 && (o.recent.Len() > maxPrepared || o.bytes > maxPreparedBytes) {
		o.drop(o.recent.Back().Value.(statement).id)
	}
}

func (o *owner) drop(id string) bool {
	el, ok := o.byID[id]
	if ok {
		o.bytes -= el.Value.(statement).size()
		o.recent.Remove(el)
		delete(o.byID, id)
	}
	return ok
}

// expire forgets what was idle for too long.
func (r *registry) expire() {
	for p, o := range r.owners {
		for o.recent.Len() > 0 {
			if oldest := o.recent.Back().Value.(statement); r.now().Sub(oldest.used) > r.idle {
				o.drop(oldest.id)
				continue
			}
			break
		}
		if o.recent.Len() == 0 {
			delete(r.owners, p)
		}
	}
}

// get finds a statement and marks it as used.
func (r *registry) get(p core.Principal, handle []byte) (statement, error) {
	return r.update(p, handle, func(*statement) {})
}

// bind sets the parameters of a statement.
func (r *registry) bind(p core.Principal, handle, params []byte) error {
	_, err := r.update(p, handle, func(st *statement) {
		st.params = params
		st.binding++
	})
	return err
}

func (r *registry) update(p core.Principal, handle []byte, change func(*statement)) (statement, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire()
	o := r.owners[p]
	if o == nil || o.byID[string(handle)] == nil {
		return statement{}, errs.New(errs.NotFound, "the prepared statement is not known, was closed, or was unused for over %s", r.idle).
			WithStep(errs.StepAdmit).WithHint("prepare it again")
	}
	st := o.byID[string(handle)].Value.(statement)
	o.drop(st.id)
	st.used = r.now()
	change(&st)
	o.put(st)
	return st, nil
}

// remove forgets a statement. One that is not there is no error.
func (r *registry) remove(p core.Principal, handle []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o := r.owners[p]; o != nil {
		o.drop(string(handle))
	}
	r.expire()
}

func (s *Server) createPrepared(stream flight.FlightService_DoActionServer, body []byte) error {
	var req pb.ActionCreatePreparedStatementRequest
	ctx := stream.Context()
	p, err := s.beginSQL(ctx, body, &req)
	if err != nil {
		return err
	}
	if err := checkStatement(req.GetQuery(), req.GetTransactionId()); err != nil {
		return err
	}
	st := statement{sql: req.GetQuery()}
	if st.class, err = class(ctx); err != nil {
		return err
	}
	if st.source, err = s.source(ctx, p); err != nil {
		return err
	}
	described, err := s.f.Prepare(ctx, service.QueryInput{Source: st.source, SQL: st.sql, Class: st.class})
	if err != nil {
		return err
	}
	st.dataset = described.Dataset
	return sendSQLResult(stream, &pb.ActionCreatePreparedStatementResult{
		PreparedStatementHandle: s.prepared.add(p, st),
		DatasetSchema:           described.Dataset, // empty for a statement without rows: JDBC knows updates by that
		ParameterSchema:         described.Params,
		IsUpdate:                new(described.Dataset == nil),
	})
}

func (s *Server) closePrepared(stream flight.FlightService_DoActionServer, body []byte) error {
	var req pb.ActionClosePreparedStatementRequest
	p, err := s.beginSQL(stream.Context(), body, &req)
	if err != nil {
		return err
	}
	s.prepared.remove(p, req.GetPreparedStatementHandle())
	return stream.Send(&flight.Result{})
}
