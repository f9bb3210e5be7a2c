package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// answer plays a member's answer to a query.
type answer struct {
	status  int
	body    []byte
	trailer map[string]string
	abort   bool
}

func (r *rig) member(a answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handler = func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		w.Header().Set("Trailer", strings.Join([]string{memberapi.TrailerStatus, memberapi.TrailerError, memberapi.TrailerStats}, ","))
		w.WriteHeader(a.status)
		_, _ = w.Write(a.body)
		if a.abort {
			panic(http.ErrAbortHandler)
		}
		for k, v := range a.trailer {
			w.Header().Set(k, v)
		}
	}
}

// TestOnlyWholeResultsEndWell holds the fifth promise at the service: whatever a
// member's stream ends in, only the marker together with the status is an end.
func TestOnlyWholeResultsEndWell(t *testing.T) {
	t.Parallel()
	frames := []byte("not decoded by the service")
	whole := append(append([]byte{}, frames...), eosMarker...)
	ok := map[string]string{memberapi.TrailerStatus: memberapi.StatusOK, memberapi.TrailerStats: `{"rows":7}`}
	failed := map[string]string{memberapi.TrailerStatus: "error", memberapi.TrailerError: `{"class":"source","message":"division by zero","step":"stream"}`}
	for _, tt := range []struct {
		name   string
		answer answer
		class  errs.Class // "" for a whole result
		text   string
	}{
		{"whole", answer{200, whole, ok, false}, "", ""},
		{"no trailer", answer{200, whole, nil, false}, errs.Unavailable, "without saying"},
		{"no marker", answer{200, frames, ok, false}, errs.Unavailable, "without saying"},
		{"marker, then an error", answer{200, whole, failed, false}, errs.Source, "division by zero"},
		{"an error", answer{200, frames, failed, false}, errs.Source, "division by zero"},
		{"the connection breaks", answer{200, whole, nil, true}, errs.Unavailable, "was lost"},
		{"nothing at all", answer{200, nil, nil, false}, errs.Unavailable, "without saying"},
		{"an early error", answer{422, []byte(`{"class":"source","message":"syntax error","step":"execute"}`), nil, false}, errs.Source, "syntax error"},
		{"an early error without a reason", answer{500, []byte(`oops`), nil, false}, errs.Internal, "no reason"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.apply(example(t)...)
			r.host()
			r.member(tt.answer)
			rec, err := r.query()
			if tt.class == "" {
				if err != nil || rec.State != core.QuerySucceeded || rec.Rows != 7 || rec.Bytes != int64(len(whole)) {
					t.Fatalf("got %v, record %+v", err, rec)
				}
				return
			}
			if errs.ClassOf(err) != tt.class || !strings.Contains(fmt.Sprint(err), tt.text) {
				t.Fatalf("got %v, want class %s with %q", err, tt.class, tt.text)
			}
			if rec.State != core.QueryFailed || rec.Error == "" {
				t.Errorf("record %+v, want a failure with its reason", rec)
			}
		})
	}
}

// query runs a query to its end and returns its record.
func (r *rig) query() (core.Query, error) {
	r.t.Helper()
	res, err := r.svc.Query(r.ctx, QueryInput{Source: "orders", SQL: "select 1"})
	if err != nil {
		var q *QueryError
		if !errors.As(err, &q) {
			r.t.Fatalf("%v carries no query ID", err)
		}
		rec, recErr := r.svc.QueryRecord(r.ctx, q.QueryID)
		if recErr != nil {
			r.t.Fatal(recErr)
		}
		return rec, err
	}
	_, err = io.Copy(io.Discard, res.Body)
	return res.Finish(err), err
}

func TestQueryIsRecordedWithItsPhases(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	r.host()
	r.member(answer{200, eosMarker, map[string]string{
		memberapi.TrailerStatus: memberapi.StatusOK, memberapi.TrailerStats: `{"rows":0,"connectNs":5000,"executeNs":7000}`,
	}, false})
	rec, err := r.query()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	var sum time.Duration
	for _, p := range rec.Phases {
		names = append(names, p.Name)
		sum += p.Duration
	}
	want := []string{core.PhaseQueued, core.PhaseLeased, core.PhaseInjected, core.PhaseDialledBack, core.PhaseConnected, core.PhaseExecuted, core.PhaseStreamed}
	if strings.Join(names, ",") != strings.Join(want, ",") {
		t.Errorf("phases %v, want %v", names, want)
	}
	if total := rec.EndedAt.Sub(rec.StartedAt); sum > total+time.Millisecond {
		t.Errorf("the phases sum up to %s, more than the whole %s", sum, total)
	}
	if rec.User != "ann" || !rec.Address.IsValid() || rec.Member == "" {
		t.Errorf("record %+v lacks who, or where", rec)
	}
	all, err := r.svc.QueryRecords(r.ctx, "orders", 10)
	if err != nil || len(all) != 1 || all[0].State != core.QuerySucceeded {
		t.Errorf("the log holds %+v, %v", all, err)
	}
}

func TestUnreachableSourceNamesTheRule(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	docs := example(t)
	for i := range docs {
		docs[i].Spec = bytes.ReplaceAll(docs[i].Spec, []byte(`"access":"Allow"`), []byte(`"access":"Deny"`))
	}
	r.apply(docs...)
	r.host()
	r.member(answer{503, []byte(`{"class":"unavailable","message":"connect to orders.corp.internal: timed out","step":"connect"}`), nil, false})
	_, err := r.query()
	if errs.ClassOf(err) != errs.Unavailable || !strings.Contains(fmt.Sprint(err), "denied by rule gateways/allow-postgres (100) at subnet gateways, outbound") {
		t.Errorf("got %v, want the rule", err)
	}
}

// What the source itself said of its TLS is not replaced by a guess about the way to it.
func TestWhatTheSourceAnsweredIsKept(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	r.host()
	const step = `{"steps":[{"name":"tls","error":"the server does not offer TLS","hint":"turn TLS on"%s}]}`
	for class, hint := range map[string]string{`,"class":"source"`: "turn TLS on", `,"class":"unavailable"`: "check that a server answers on"} {
		r.member(answer{200, fmt.Appendf(nil, step, class), nil, false})
		got, err := r.svc.TestDataSource(r.ctx, "orders")
		if err != nil || len(got.Steps) != 1 || !strings.HasPrefix(got.Steps[0].Hint, hint) {
			t.Errorf("%s: %+v, %v", class, got, err)
		}
	}
}

// No source takes a NUL; PostgreSQL's protocol would end the statement there.
func TestNULIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	in := QueryInput{Source: "orders", SQL: "select 1\x00; drop table t"}
	_, queryErr := r.svc.Query(r.ctx, in)
	_, prepareErr := r.svc.Prepare(r.ctx, in)
	for _, err := range []error{queryErr, prepareErr} {
		if e := errs.As(err); err == nil || e.Class != errs.Invalid || e.Message != "the SQL holds a NUL character, the 9. byte" {
			t.Errorf("%v", err)
		}
	}
}

// Until its host has acted on a change, what the member met is what held before.
func TestUnreachableWhileTheHostIsBehind(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	r.host()
	r.member(answer{503, []byte(`{"class":"unavailable","message":"connect to orders.corp.internal: timed out","step":"connect"}`), nil, false})
	_, err := r.query()
	if err == nil || strings.Contains(err.Error(), "has not acted") {
		t.Errorf("before any change: %v", err)
	}
	if err := r.svc.opts.Store.Write(r.ctx, r.fleet.BumpGoals); err != nil {
		t.Fatal(err) // and nobody has told the host
	}
	_, err = r.query()
	if e := errs.As(err); err == nil || !strings.Contains(e.Message, "the rules allow it, but host h has not acted on the last change yet") || !strings.Contains(e.Hint, "try again in a moment") {
		t.Errorf("behind: %v (%s)", err, errs.As(err).Hint)
	}
}

func TestClientThatGoesAwayIsRecorded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	r.host()
	r.mu.Lock()
	r.handler = func(w http.ResponseWriter, req *http.Request) {
		w.WriteHeader(200)
		_, _ = w.Write([]byte("begin"))
		_ = http.NewResponseController(w).Flush()
		select {
		case <-req.Context().Done():
		case <-time.After(10 * time.Second):
		}
	}
	r.mu.Unlock()
	ctx, cancel := context.WithCancel(r.ctx)
	res, err := r.svc.Query(ctx, QueryInput{Source: "orders", SQL: "select 1"})
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err = io.Copy(io.Discard, res.Body)
	if rec := res.Finish(err); rec.State != core.QueryCancelled {
		t.Errorf("record %+v after %v, want cancelled", rec, err)
	}
	for uid, n := range r.fleet.InFlight("") {
		t.Errorf("member %s still has %d queries in flight", uid, n)
	}
}
