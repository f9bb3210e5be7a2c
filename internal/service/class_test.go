package service

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/fleet"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

func TestBounds(t *testing.T) {
	interactive := core.DefaultLimits(core.ClassInteractive)
	never := core.ClassLimits{MaxRows: core.Unlimited, Timeout: core.Never, Stall: core.Never}
	for _, tt := range []struct {
		name   string
		asked  time.Duration
		limits core.ClassLimits
		want   bounds
	}{
		{"the class's", 0, interactive, bounds{4 * time.Minute, 1_000_000, 2 * time.Minute}},
		{"less time", time.Second, interactive, bounds{time.Second, 1_000_000, 2 * time.Minute}},
		{"more time than allowed", time.Hour, interactive, bounds{4 * time.Minute, 1_000_000, 2 * time.Minute}},
		{"refresh", 0, core.DefaultLimits(core.ClassRefresh), bounds{2 * time.Hour, 0, 10 * time.Minute}},
		{"none", 0, never, bounds{0, 0, forEver}},
		{"none but the client's", time.Hour, never, bounds{time.Hour, 0, forEver}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := boundsOf(QueryInput{Timeout: tt.asked}, tt.limits)
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(bounds{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// holding is a member that answers once it is let go, and notes what it was asked.
type holding struct {
	asked chan memberapi.QueryRequest
	free  chan struct{}
}

func (r *rig) hold() holding {
	h := holding{make(chan memberapi.QueryRequest, 100), make(chan struct{})}
	r.serve(func(w http.ResponseWriter, req *http.Request) {
		var q memberapi.QueryRequest
		_ = json.NewDecoder(req.Body).Decode(&q)
		h.asked <- q
		select {
		case <-h.free:
		case <-req.Context().Done():
		}
		whole(w)
	})
	return h
}

// whole answers with a whole, empty result.
func whole(w http.ResponseWriter) {
	w.Header().Set("Trailer", memberapi.TrailerStatus)
	_, _ = w.Write(eosMarker)
	w.Header().Set(memberapi.TrailerStatus, memberapi.StatusOK)
}

// serve sets what the member answers.
func (r *rig) serve(h http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handler = h
}

// read runs a query to its end.
func (r *rig) read(in QueryInput) (core.Query, error) {
	res, err := r.svc.Query(r.ctx, in)
	if err != nil {
		var q *QueryError
		errors.As(err, &q)
		rec, _ := r.svc.QueryRecord(r.ctx, q.QueryID)
		return rec, err
	}
	_, err = io.Copy(io.Discard, res.Body)
	return res.Finish(err), err
}

const oneSlot = `{"name":"corp-bi","vnet":"corp","subnet":"gateways","classes":{"interactive":{"concurrency":1,"queue":1,"maxRows":7,"timeout":"3m"}}}`

func TestClassesLimitAndQueue(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host()
	r.apply(example(t)...)
	r.apply(doc(core.KindGateway, oneSlot))
	h := r.hold()
	first, second := make(chan error, 1), make(chan error, 1)
	query := func(class core.QueryClass) (core.Query, error) {
		return r.read(QueryInput{Source: "orders", SQL: "select 1", Class: class})
	}
	go func() { _, err := query(""); first <- err }()
	if q := <-h.asked; q.MaxRows != 7 || q.TimeoutMS != (3*time.Minute).Milliseconds() {
		t.Errorf("the member got maxRows %d and timeout %d ms", q.MaxRows, q.TimeoutMS)
	}
	go func() { _, err := query(""); second <- err }()
	want := fleet.Demand{Queued: 1, InFlight: 1, Slots: 1}
	r.until("one waits", func() bool { return r.demand() == want })
	rec, err := query("")
	if e := errs.As(err); e.Class != errs.Exhausted || e.Step != errs.StepQueue || rec.ErrorStep != errs.StepQueue {
		t.Errorf("a third: %v, record %+v", err, rec)
	}
	refresh := make(chan error, 1)
	go func() { _, err := query(core.ClassRefresh); refresh <- err }()
	if q := <-h.asked; q.MaxRows != 0 || q.TimeoutMS != (2*time.Hour).Milliseconds() {
		t.Errorf("for refresh the member got maxRows %d and timeout %d ms", q.MaxRows, q.TimeoutMS)
	}
	close(h.free)
	for _, c := range []chan error{first, second, refresh} {
		if err := <-c; err != nil {
			t.Error(err)
		}
	}
}

// demand is what is asked of the example's gateway, of the interactive class.
func (r *rig) demand() fleet.Demand {
	r.t.Helper()
	v, err := r.svc.Get(r.ctx, "Gateway", "corp-bi")
	if err != nil {
		r.t.Fatal(err)
	}
	return v.Status.(GatewayStatus).Classes[core.ClassInteractive]
}

func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	for !ok() {
		if r.ctx.Err() != nil {
			r.t.Fatalf("never came: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// A client that reads nothing keeps its slot only until another user waits for it.
func TestStalledResultGivesWay(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host()
	r.apply(example(t)...)
	r.apply(doc(core.KindGateway, oneSlot))
	r.serve(func(w http.ResponseWriter, req *http.Request) {
		var q memberapi.QueryRequest
		_ = json.NewDecoder(req.Body).Decode(&q)
		if q.SQL == "select 1" {
			whole(w)
			return
		}
		_, _ = w.Write([]byte("a part"))
		_ = http.NewResponseController(w).Flush()
		<-req.Context().Done()
	})
	stalled, err := r.svc.Query(r.ctx, QueryInput{Source: "orders", SQL: "select more"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stalled.Body.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	bob := core.WithPrincipal(r.ctx, core.Principal{Tenant: core.DefaultTenant, Name: "bob", Role: core.RoleAdmin})
	res, err := r.svc.Query(bob, QueryInput{Source: "orders", SQL: "select 1"})
	if err != nil {
		t.Fatalf("another user's query: %v", err)
	}
	_, err = io.Copy(io.Discard, res.Body)
	res.Finish(err)
	_, err = io.Copy(io.Discard, stalled.Body)
	rec := stalled.Finish(err)
	if rec.State != core.QueryCancelled || !strings.Contains(rec.Error, "while other users waited for its slot") {
		t.Errorf("the stalled query: %v, record %+v", err, rec)
	}
}
