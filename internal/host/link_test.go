package host

import (
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostapi"
	"github.com/sluice-gateway/sluice/internal/wire"
)

// TestChangesStandForGoalStatesAndReports: between a host and a service that both know them,
// only the first goal state and the first report of a connection are whole.
func TestChangesStandForGoalStatesAndReports(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.deltas = true
	r.start()
	r.want(1, 2)
	holds := func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.holds != nil && *r.holds == hostapi.Holds{Version: r.goal.Version, Sum: r.goal.Sum()}
	}
	r.eventually("the host says that it has it", func() bool { return r.exists(1, 2) && holds() })
	for i, members := range [][]int{{1, 2, 3}, {3}, {3, 4}, nil} {
		r.want(members...)
		r.eventually("it is true and reported", func() bool {
			return r.exists(members...) && holds() && r.lastReport().Version == r.version && len(r.lastReport().Members) == len(members)
		})
		r.mu.Lock()
		if r.changes != i+1 {
			t.Errorf("%d goal states were sent as changes, want %d", r.changes, i+1)
		}
		r.mu.Unlock()
	}
}

// TestChangesThatDoNotFollowChangeNothing: the host goes on with what it has and asks for all.
func TestChangesThatDoNotFollowChangeNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.deltas = true
	r.start()
	r.want(1)
	r.eventually("it runs", func() bool { return r.exists(1) })
	r.mu.Lock()
	right := r.goal
	sent, conn := r.whole, r.conn
	r.mu.Unlock()
	for _, d := range []core.GoalDelta{
		{Base: right.Version + 1, Version: right.Version + 1, Gone: []string{"m-1"}},               // of what it never had
		{Base: right.Version, Version: right.Version + 1, Gone: []string{"m-1"}, Sum: right.Sum()}, // not what was meant
	} {
		sent++
		if err := wire.Write(conn, hostapi.ToHost{Delta: &d, Deltas: true}); err != nil {
			t.Fatal(err)
		}
		r.eventually("all is asked for", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.whole == sent })
	}
	time.Sleep(200 * time.Millisecond) // it has looked a few times at what it has
	if !r.exists(1) {
		t.Error("the member is gone")
	}
	r.version++ // of the deltas
	r.want(1, 2)
	r.eventually("the next goal state is obeyed", func() bool { return r.exists(1, 2) })
}

// TestOlderService: a service that does not say that it knows changes is never sent any.
func TestOlderService(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start()
	r.want(1)
	r.eventually("it runs", func() bool { return r.exists(1) && len(r.lastReport().Members) == 1 })
	r.want(1, 2)
	r.eventually("both run", func() bool { return r.exists(1, 2) && len(r.lastReport().Members) == 2 })
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changed != 0 {
		t.Errorf("%d changes were sent to a service that knows none", r.changed)
	}
}
