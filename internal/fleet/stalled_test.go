package fleet

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

// TestStalledResultsLoseTheirSlots: one user's results that nobody reads hold at most half
// of the slots while others wait.
func TestStalledResultsLoseTheirSlots(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		stalled int // of ann's four
		idle    time.Duration
		waits   string // who asks
		goesOn  bool   // ann reads everything as soon as something is cut
		cut     int64
	}{
		{"all stalled, another waits", 4, time.Minute, "bob", false, 2},
		{"three stalled, another waits", 3, time.Minute, "bob", false, 1},
		{"half stalled, another waits", 2, time.Minute, "bob", false, 0},
		{"all stalled for a moment", 4, time.Second, "bob", false, 0},
		{"all stalled, the next is read as the first is cut", 4, time.Minute, "bob", true, 1},
		{"all stalled, only their user waits", 4, time.Minute, "ann", false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.host("h", nil)
			var cut atomic.Int64
			var grants []Grant
			four := func(user string) Request {
				q := ask(user)
				q.Limits.Concurrency = 4
				q.Cut = func(time.Duration) {
					cut.Add(1)
					for _, g := range grants {
						if c.goesOn {
							g.Work.Reads()
						}
					}
				}
				return q
			}
			for range 4 {
				g, err := r.fleet.Admit(within(t, 10*time.Second), four("ann"))
				if err != nil {
					t.Fatal(err)
				}
				grants = append(grants, g)
			}
			for i, g := range grants {
				g.Work.Streamed(1)
				if i >= c.stalled {
					g.Work.Reads()
				}
			}
			ctx, cancel := context.WithCancel(within(t, 10*time.Second))
			defer cancel()
			served := make(chan error, 1)
			go func() {
				g, err := r.fleet.Admit(ctx, four(c.waits))
				if err == nil {
					g.Release()
				}
				served <- err
			}()
			demand := func() Demand { return r.fleet.Demand(corpBI.UID)[core.ClassInteractive] }
			r.eventually("it waits", func() bool { return demand().Queued == 1 })
			r.ahead.Add(int64(c.idle))
			r.fleet.relieve()
			if c.cut > 0 {
				if err := <-served; err != nil {
					t.Errorf("who waited: %v", err)
				}
			} else if demand().Queued != 1 {
				t.Error("who waits was served")
			}
			if n := cut.Load(); n != c.cut {
				t.Errorf("%d results were cut, want %d", n, c.cut)
			}
			cancel()
			for _, g := range grants {
				r.fleet.mu.Lock()
				if g.Work.lost {
					cut.Add(-1)
				}
				r.fleet.mu.Unlock()
				g.Release()
			}
			if n := cut.Load(); n != 0 {
				t.Errorf("%d results more were cut than lost their slots", n)
			}
			r.eventually("no slot is taken", func() bool { d := demand(); return d.InFlight == 0 && d.Queued == 0 })
		})
	}
}
