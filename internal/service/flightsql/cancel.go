package flightsql

import (
	"context"
	"sync"
	"time"

	"github.com/apache/arrow-go/v18/arrow/flight"
	pb "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// errCancelled ends a query that CancelFlightInfo named.
var errCancelled = errs.New(errs.Cancelled, "the query was cancelled")

// maxCancelled bounds the tickets that were cancelled before they were used.
const maxCancelled = 4096

// running knows the queries that can be cancelled, by their ticket's ID.
type running struct {
	now func() time.Time

	mu   sync.Mutex
	next int64
	runs map[string]map[int64]context.CancelCauseFunc
	// refused are tickets that were cancelled, until they expire.
	refused map[string]time.Time
}

func newRunning(now func() time.Time) *running {
	return &running{now: now, runs: map[string]map[int64]context.CancelCauseFunc{}, refused: map[string]time.Time{}}
}

// start notes a run of a ticket. end must be called, and may be more than once.
func (r *running) start(ctx context.Context, id string) (run context.Context, end func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.refused[id]; ok {
		return nil, nil, errCancelled
	}
	run, cancel := context.WithCancelCause(ctx)
	r.next++
	n := r.next
	if r.runs[id] == nil {
		r.runs[id] = map[int64]context.CancelCauseFunc{}
	}
	r.runs[id][n] = cancel
	return run, func() {
		cancel(nil)
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.runs[id], n)
		if len(r.runs[id]) == 0 {
			delete(r.runs, id)
		}
	}, nil
}

// cancel ends the runs of a ticket and keeps it from being used again. It returns false
// if it could do neither: too many tickets were cancelled.
func (r *running) cancel(id string, expires time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, cancel := range r.runs[id] {
		cancel(errCancelled)
	}
	if len(r.refused) >= maxCancelled {
		for old, at := range r.refused {
			if r.now().After(at) {
				delete(r.refused, old)
			}
		}
	}
	if len(r.refused) >= maxCancelled {
		return len(r.runs[id]) > 0
	}
	r.refused[id] = expires
	return true
}

// cancelInfo cancels the queries of a FlightInfo.
func (s *Server) cancelInfo(p core.Principal, info *flight.FlightInfo) error {
	if len(info.GetEndpoint()) == 0 {
		return errs.New(errs.Invalid, "the FlightInfo to cancel has no endpoint")
	}
	for _, ep := range info.GetEndpoint() {
		t, err := s.redeem(p, ep.GetTicket().GetTicket())
		if err != nil {
			return err
		}
		if !s.running.cancel(t.ID, t.Expires) {
			return errs.New(errs.Exhausted, "too many queries that never ran were cancelled").WithHint("try again in some minutes")
		}
	}
	return nil
}

func (s *Server) cancelFlightInfo(stream flight.FlightService_DoActionServer, body []byte) error {
	var req pb.CancelFlightInfoRequest
	p, err := s.begin(stream.Context(), body, &req)
	if err != nil {
		return err
	}
	if err := s.cancelInfo(p, req.GetInfo()); err != nil {
		return err
	}
	return sendResult(stream, &pb.CancelFlightInfoResult{Status: pb.CancelStatus_CANCEL_STATUS_CANCELLED})
}

// cancelQuery is the older form of cancelFlightInfo, which some clients still send.
func (s *Server) cancelQuery(stream flight.FlightService_DoActionServer, body []byte) error {
	var req pb.ActionCancelQueryRequest //nolint:staticcheck // deprecated in the protocol, sent by clients
	p, err := s.beginSQL(stream.Context(), body, &req)
	if err != nil {
		return err
	}
	var info flight.FlightInfo
	if err := proto.Unmarshal(req.GetInfo(), &info); err != nil {
		return errs.New(errs.Invalid, "the FlightInfo to cancel can't be read: %w", err)
	}
	if err := s.cancelInfo(p, &info); err != nil {
		return err
	}
	return sendSQLResult(stream, &pb.ActionCancelQueryResult{ //nolint:staticcheck // see above
		Result: pb.ActionCancelQueryResult_CANCEL_RESULT_CANCELLED,
	})
}
