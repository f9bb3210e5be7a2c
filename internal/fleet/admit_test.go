package fleet

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// ask is a request of a user with two slots per member and room for three in the line.
func ask(user string) Request {
	return Request{
		Gateway: corpBI, Class: core.ClassInteractive, User: user, Source: "orders",
		Limits: core.ClassLimits{Concurrency: 2, Queue: 3, QueuePerUser: 2},
	}
}

// admitted is what became of a request.
type admitted struct {
	user  string
	grant Grant
	err   error
}

// line has users ask in the background, one after the other.
func (r *rig) line(ctx context.Context, users ...string) <-chan admitted {
	r.t.Helper()
	out := make(chan admitted, len(users))
	for _, u := range users {
		before := r.fleet.Demand(corpBI.UID)[core.ClassInteractive].Queued
		go func() {
			g, err := r.fleet.Admit(ctx, ask(u))
			out <- admitted{u, g, err}
		}()
		r.eventually("it waits", func() bool { return r.fleet.Demand(corpBI.UID)[core.ClassInteractive].Queued > before })
	}
	return out
}

func (r *rig) admit(user string) Grant {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	g, err := r.fleet.Admit(ctx, ask(user))
	if err != nil {
		r.t.Fatal(err)
	}
	return g
}

func TestSlotsGoToUsersInTurn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	first, second := r.admit("ann"), r.admit("ann")
	waiting := r.line(within(t, 10*time.Second), "ann", "ann", "bob")
	want := Demand{Queued: 3, InFlight: 2, Slots: 2}
	if diff := cmp.Diff(want, r.fleet.Demand(corpBI.UID)[core.ClassInteractive]); diff != "" {
		t.Error(diff)
	}
	order := r.fleet.Order(corpBI.UID, core.ClassInteractive, func(q Request) string { return q.User })
	if diff := cmp.Diff([]string{"bob", "ann", "ann"}, order); diff != "" {
		t.Error(diff)
	}
	first.Release()
	if a := <-waiting; a.err != nil || a.user != "bob" {
		t.Errorf("%s was served first, %v; ann has more running", a.user, a.err)
	} else {
		a.grant.Release()
	}
	second.Release()
	for range 2 {
		if a := <-waiting; a.err != nil || a.grant.Wake != nil {
			t.Errorf("%s: %v, wake %v", a.user, a.err, a.grant.Wake)
		} else {
			a.grant.Release()
		}
	}
	want = Demand{Slots: 2}
	if diff := cmp.Diff(want, r.fleet.Demand(corpBI.UID)[core.ClassInteractive]); diff != "" {
		t.Error(diff)
	}
}

func TestWhatEndedCountsAgainstNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	for range 5 {
		r.admit("ann").Release()
	}
	first, second := r.admit("bob"), r.admit("bob")
	defer second.Release()
	waiting := r.line(within(t, 10*time.Second), "bob", "ann")
	first.Release()
	for _, want := range []string{"ann", "bob"} {
		a := <-waiting
		if a.err != nil || a.user != want {
			t.Errorf("%s was served, %v; want %s", a.user, a.err, want)
			continue
		}
		a.grant.Release()
	}
}

func TestClassesHaveSlotsOfTheirOwn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	defer r.admit("ann").Release()
	defer r.admit("ann").Release()
	req := ask("ann")
	req.Class = core.ClassRefresh
	g, err := r.fleet.Admit(within(t, 5*time.Second), req)
	if err != nil {
		t.Fatalf("refresh has a free slot: %v", err)
	}
	g.Release()
	call, err := r.fleet.Acquire(within(t, 5*time.Second), corpBI)
	if err != nil {
		t.Fatalf("what takes no slot waits for none: %v", err)
	}
	call.Release()
}

func TestFullLineRefusesAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	defer r.admit("ann").Release()
	defer r.admit("ann").Release()
	ctx, cancel := context.WithCancel(within(t, 20*time.Second))
	waiting := r.line(ctx, "ann", "ann")
	_, err := r.fleet.Admit(within(t, 10*time.Second), ask("ann"))
	e := errs.As(err)
	if e.Class != errs.Exhausted || e.Step != errs.StepQueue || e.RetryAfterMS < 1000 || !strings.Contains(e.Message, "this user") || !strings.Contains(e.Hint, "classes.interactive.queuePerUser") {
		t.Errorf("a user's third: %+v", e)
	}
	more := r.line(ctx, "bob")
	_, err = r.fleet.Admit(within(t, 10*time.Second), ask("cid"))
	if e := errs.As(err); e.Class != errs.Exhausted || !strings.Contains(e.Hint, "classes.interactive.queue ") {
		t.Errorf("a fourth: %+v", e)
	}
	cancel()
	for range 2 {
		if a := <-waiting; errs.ClassOf(a.err) != errs.Cancelled {
			t.Errorf("a cancelled one: %v", a.err)
		}
	}
	<-more
	want := Demand{InFlight: 2, Slots: 2, Refused: 2}
	if diff := cmp.Diff(want, r.fleet.Demand(corpBI.UID)[core.ClassInteractive]); diff != "" {
		t.Error(diff)
	}
}

func TestWaitingEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	defer r.admit("ann").Release()
	defer r.admit("ann").Release()
	_, err := r.fleet.Admit(within(t, 50*time.Millisecond), ask("ann"))
	e := errs.As(err)
	if e.Class != errs.Timeout || e.Step != errs.StepQueue || !strings.Contains(e.Message, "all 2 slots of gateway corp-bi for interactive queries were taken") {
		t.Errorf("got %+v", e)
	}
}

func TestFailedWakeEndsTheWait(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", func(h *scripted) { h.exit = "exit status 1" })
	waiting := make(chan admitted, 2)
	for _, u := range []string{"ann", "bob"} { // the wake may fail before anybody sees them wait
		go func() {
			g, err := r.fleet.Admit(within(t, 20*time.Second), ask(u))
			waiting <- admitted{u, g, err}
		}()
	}
	for range 2 {
		if a := <-waiting; errs.ClassOf(a.err) != errs.Unavailable || errs.As(a.err).Step != errs.StepWake {
			t.Errorf("%s: %v", a.user, a.err)
		}
	}
	if d := r.fleet.Demand(corpBI.UID)[core.ClassInteractive]; d.Queued != 0 || d.InFlight != 0 {
		t.Errorf("%+v is left", d)
	}
}

func TestWhatIsFreedIsGivenOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	g := r.admit("ann")
	g.Release()
	g.Release()
	if d := r.fleet.Demand(corpBI.UID)[core.ClassInteractive]; d.InFlight != 0 {
		t.Errorf("%d in flight after a query that was released twice", d.InFlight)
	}
}
