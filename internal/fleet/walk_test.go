package fleet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/lifecycle"
	"github.com/sluice-gateway/sluice/internal/store"
	"github.com/sluice-gateway/sluice/internal/testseed"
)

// walk is a fleet to which things happen in a random order.
type walk struct {
	*rig
	random *rand.Rand
	host   *scripted // nil while it is away
	grants []Grant
	trace  []string
}

// walkSteps bounds one walk.
const walkSteps = 80

// TestLifeWhateverHappens holds the machine of gateways and members against the real fleet:
// queries, commands, deaths, hangs, restarts and changes come in random orders. Every change
// that was noted is one that the machine allows, each begins where the last one ended, and
// at the end a query works and a pause leaves nothing.
func TestLifeWhateverHappens(t *testing.T) {
	t.Parallel()
	first := testseed.Of(t)
	for seed := first; seed < first+6; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := &walk{random: rand.New(rand.NewPCG(seed, 11))}
			w.rig = tunedRig(t, func(o *Options) { o.Quarantine, o.ShrinkAfter = time.Nanosecond, time.Minute })
			w.connect()
			acts := map[string]func(){
				"query": w.query, "release": w.release, "wake": w.order, "pause": w.pause, "end": w.end, "hang": w.hang,
				"flap": w.flap, "host": w.toggle, "service": w.restart, "size": w.resize, "bounds": w.bounds, "later": w.later,
			}
			var names []string
			for name := range acts {
				names = append(names, name)
			}
			slices.Sort(names)
			for range walkSteps {
				name := names[w.random.IntN(len(names))]
				w.trace = append(w.trace, name)
				acts[name]()
				w.check()
			}
			w.finish()
		})
	}
}

func (w *walk) connect() { w.host = w.rig.host("h", nil) }

// soon returns a context that ends soon: a query may have nothing to wait for.
func (w *walk) soon() context.Context { return within(w.t.(*testing.T), 200*time.Millisecond) }

func (w *walk) expect(what string, err error) {
	w.t.Helper()
	class := errs.ClassOf(err)
	if err != nil && !slices.Contains([]errs.Class{errs.Timeout, errs.Unavailable, errs.Exhausted}, class) {
		w.t.Errorf("%v: %s: %s: %v", w.trace, what, class, err)
	}
}

func (w *walk) query() {
	g, err := w.fleet.Acquire(w.soon(), corpBI)
	w.expect("a query", err)
	if err == nil {
		w.grants = append(w.grants, g)
	}
}

func (w *walk) release() {
	for _, g := range w.grants {
		g.Release()
	}
	w.grants = nil
}

func (w *walk) order() { w.expect("a wake", w.fleet.Wake(w.soon(), corpBI, "the walk asks")) }

func (w *walk) pause() {
	w.expect("a pause", w.fleet.Pause(within(w.t.(*testing.T), time.Second), corpBI, "the walk asks"))
}

// any returns a member that is not leaving.
func (w *walk) any() (core.Member, bool) {
	all := slices.DeleteFunc(w.fleet.Members(tenant), func(m core.Member) bool { return m.State == core.MemberLeaving })
	if len(all) == 0 {
		return core.Member{}, false
	}
	return all[w.random.IntN(len(all))], true
}

func (w *walk) end() {
	if m, ok := w.any(); ok && w.host != nil {
		w.host.say(m, "exit status 9")
	}
}

func (w *walk) hang() {
	if m, ok := w.any(); ok {
		w.fleet.TunnelDown(m.ID, m.Generation, fmt.Errorf("silence: %w", os.ErrDeadlineExceeded))
	}
}

func (w *walk) flap() {
	if m, ok := w.any(); ok {
		w.fleet.TunnelDown(m.ID, m.Generation, errors.New("cut"))
		w.fleet.TunnelUp(m.ID, m.Generation)
	}
}

func (w *walk) toggle() {
	if w.host == nil {
		w.connect()
		return
	}
	w.away()
}

func (w *walk) away() {
	w.host.conn.Close()
	w.host = nil
	w.eventually("the host is away", func() bool { return len(w.fleet.Hosts()) == 0 })
}

func (w *walk) restart() {
	w.release()
	if w.host != nil {
		w.away()
	}
	w.close()
	w.open()
	w.connect()
}

func (w *walk) resize() {
	w.spec(func(g *core.Gateway) { g.Size.MemoryMiB = 64 + w.random.Int64N(3) })
}

func (w *walk) bounds() {
	w.spec(func(g *core.Gateway) {
		g.Members.Min = w.random.IntN(3)
		g.Members.Max = max(g.Members.Min, 1+w.random.IntN(2))
		g.AutoPause = core.Duration(time.Duration(1+w.random.IntN(3)) * time.Minute)
	})
}

func (w *walk) later() { w.ahead.Add(int64(time.Duration(w.random.IntN(90)) * time.Second)) }

// check holds what was noted against the machines.
func (w *walk) check() {
	w.t.Helper()
	w.fleet.checkUnsettled(w.t.(*testing.T), w.trace)
	follow(w, core.TransitionOfGateway, lifecycle.Gateways, core.GatewayPaused)
	follow(w, core.TransitionOfMember, lifecycle.Members, "")
}

// follow walks the history of every object through its machine.
func follow[S ~string](w *walk, of string, machine lifecycle.Machine[S], first S) {
	w.t.Helper()
	all, err := w.fleet.History(context.Background(), store.TransitionFilter{Tenant: tenant, Of: of, Last: 10_000})
	if err != nil {
		w.t.Fatal(err)
	}
	for uid, ts := range all {
		at := first
		for _, t := range slices.Backward(ts) {
			next, ok := machine.Next(at, lifecycle.Event(t.Event))
			if string(at) != t.From || !ok || string(next) != t.To || t.Reason == "" || t.At.IsZero() {
				w.t.Fatalf("%v: %s %s was %s, then %+v", w.trace, of, uid, at, t)
			}
			at = next
		}
	}
}

// finish lets the host be there and everything come to rest.
func (w *walk) finish() {
	w.t.Helper()
	w.release()
	if w.host == nil {
		w.connect()
	}
	w.eventually(fmt.Sprintf("a query works after %v", w.trace), func() bool {
		g, err := w.fleet.Acquire(within(w.t.(*testing.T), 5*time.Second), corpBI)
		if err == nil {
			g.Release()
		}
		return err == nil
	})
	if err := w.fleet.Pause(within(w.t.(*testing.T), 90*time.Second), corpBI, "the walk is over"); err != nil {
		w.t.Fatalf("%v: the last pause: %v", w.trace, err)
	}
	w.eventually("paused, nothing left", func() bool { return w.state() == core.GatewayPaused && len(w.fleet.Members(tenant)) == 0 })
	for _, l := range w.leases() {
		if !l.Ended() {
			w.t.Errorf("%v: %+v is held", w.trace, l)
		}
	}
	w.check()
}
