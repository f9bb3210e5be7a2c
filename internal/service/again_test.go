package service

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sluice-gateway/sluice/internal/breaker"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// dying is a member that loses its first n answers before they begin.
func (r *rig) dying(n int64) *atomic.Int64 {
	var asked atomic.Int64
	r.serve(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		if asked.Add(1) <= n {
			panic(http.ErrAbortHandler)
		}
		whole(w)
	})
	return &asked
}

func TestLostBeforeTheAnswerRunsAgainOnce(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		writable bool
		lost     int64
		asked    int64
		works    bool
	}{
		{"lost once", false, 1, 2, true},
		{"lost twice", false, 2, 2, false},
		{"a source that may be written to", true, 1, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.host()
			r.apply(example(t)...)
			if tt.writable {
				r.apply(doc(core.KindDataSource, `{"name":"orders","gateway":"corp-bi","type":"postgres","readOnly":false,
					"parameters":{"host":"orders.corp.internal","database":"orders"},"credentials":{"kind":"basic","username":"report"}}`))
			}
			asked := r.dying(tt.lost)
			rec, err := r.read(QueryInput{Source: "orders", SQL: "select 1"})
			if (err == nil) != tt.works || asked.Load() != tt.asked {
				t.Errorf("asked %d times, %v; want %d times", asked.Load(), err, tt.asked)
			}
			if err != nil && errs.ClassOf(err) != errs.Unavailable {
				t.Errorf("class %s", errs.ClassOf(err))
			}
			again := tt.asked > 1
			if (rec.Retried != "") != again || again && (!strings.Contains(rec.Retried, "was lost") || strings.Contains(rec.Retried, ": member m-")) {
				t.Errorf("the record says of that: %q", rec.Retried)
			}
			if n := r.demand().InFlight; n != 0 {
				t.Errorf("%d are still in flight", n)
			}
		})
	}
}

// sourceState is the state of the example's data source.
func (r *rig) sourceState() SourceStatus {
	r.t.Helper()
	v, err := r.svc.Get(r.ctx, "DataSource", "orders")
	if err != nil {
		r.t.Fatal(err)
	}
	return v.Status.(SourceStatus)
}

func TestSourceThatIsDownFailsFast(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host()
	r.apply(example(t)...)
	var asked atomic.Int64
	r.serve(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"class":"unavailable","message":"connect to orders.corp.internal: connection refused","step":"connect"}`))
	})
	query := func() error {
		_, err := r.read(QueryInput{Source: "orders", SQL: "select 1"})
		return err
	}
	for range 5 {
		if err := query(); err == nil || strings.Contains(err.Error(), "not tried") {
			t.Fatalf("too early: %v", err)
		}
	}
	e := errs.As(query())
	if asked.Load() != 5 || e.Class != errs.Unavailable || e.Step != errs.StepConnect || e.RetryAfterMS <= 0 ||
		!strings.Contains(e.Message, "not tried now: the last 5 connections to it failed") || !strings.Contains(e.Message, "connection refused") {
		t.Errorf("asked %d times; then %+v", asked.Load(), e)
	}
	if s := r.sourceState(); s.State != breaker.Down || s.Failures != 5 || s.NextTry.IsZero() || !strings.Contains(s.Reason, "connection refused") {
		t.Errorf("status %+v", s)
	}
	if err := r.svc.Wake(r.ctx, "corp-bi"); err != nil {
		t.Errorf("the gateway suffers from it: %v", err)
	}
	r.apply(doc(core.KindGateway, oneSlot)) // what is declared has changed: it may have been the cause
	if s := r.sourceState(); s.State != breaker.Available {
		t.Errorf("after a change: %+v", s)
	}
}

func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want verdict
	}{
		{"an answer", nil, reached},
		{"refused", errs.New(errs.Unavailable, "x").WithStep(errs.StepConnect), unreachable},
		{"the client's time was up while connecting", errs.New(errs.Timeout, "x").WithStep(errs.StepConnect), nothing},
		{"a name that does not resolve", errs.New(errs.Unavailable, "x").WithStep(errs.StepResolve), nothing},
		{"cut before it signed in, as by a private endpoint", errs.New(errs.Unavailable, "x").WithStep(errs.StepSignIn), unreachable},
		{"a wrong password", errs.New(errs.Source, "x").WithStep(errs.StepSignIn), reached},
		{"a wrong statement", errs.New(errs.Source, "x").WithStep(errs.StepExecute), reached},
		{"cancelled", errs.New(errs.Cancelled, "x").WithStep(errs.StepExecute), nothing},
		{"a member that is gone", errs.New(errs.Unavailable, "x").WithStep(errs.StepTunnel), nothing},
		{"denied by a rule for certain", &denial{err: errs.New(errs.Unavailable, "x").WithStep(errs.StepConnect)}, nothing},
	} {
		if got := verdictOf(tt.err); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestCancelOnDemand(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host()
	r.apply(example(t)...)
	r.apply(doc(core.KindGateway, oneSlot))
	h := r.hold()
	type end struct {
		rec core.Query
		err error
	}
	ends := make(chan end, 2)
	query := func(sql string) {
		rec, err := r.read(QueryInput{Source: "orders", SQL: sql})
		ends <- end{rec, err}
	}
	go query("first")
	<-h.asked
	go query("second")
	ids := map[string]core.Query{}
	r.until("one waits in the first place", func() bool {
		records, err := r.svc.QueryRecords(r.ctx, "", 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range records {
			ids[rec.SQL] = rec
		}
		return ids["second"].State == core.QueryQueued && ids["second"].QueuePosition == 1
	})
	if s := ids["first"].State; s != core.QueryRunning {
		t.Errorf("the first is %s", s)
	}
	stranger := core.WithPrincipal(context.Background(), core.Principal{Tenant: core.DefaultTenant, Name: "bob", Role: "reader"})
	if err := r.svc.CancelQuery(stranger, ids["first"].ID); errs.ClassOf(err) != errs.Denied {
		t.Errorf("a stranger: %v", err)
	}
	for _, name := range []string{"second", "first"} {
		if err := r.svc.CancelQuery(r.ctx, ids[name].ID); err != nil {
			t.Fatal(err)
		}
		e := <-ends
		if e.rec.SQL != name || e.rec.State != core.QueryCancelled || !strings.Contains(e.rec.Error, "cancelled by ann") {
			t.Errorf("%s: %v, record %+v", name, e.err, e.rec)
		}
	}
	if err := r.svc.CancelQuery(r.ctx, ids["first"].ID); errs.ClassOf(err) != errs.Conflict {
		t.Errorf("one that has ended: %v", err)
	}
	r.until("the slot is free", func() bool { return r.demand().InFlight == 0 })
}
