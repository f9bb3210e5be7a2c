package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostapi"
	"github.com/sluice-gateway/sluice/internal/store"
	"github.com/sluice-gateway/sluice/internal/testseed"
)

// wired is a world whose machines speak with the service as the host package does: over
// connections that break, on which a first report is followed by what has changed since.
type wired struct {
	*world
	agents map[*machine]*agent
	old    []*link // those that machines have given up, the service perhaps not yet
}

// agent is the process that runs a machine.
type agent struct {
	link   *link
	plain  bool              // a program of before there were changes: each report is complete
	listed bool              // it knows what it runs
	tokens map[string]string // hashes of those that it has issued, by member and generation
}

// link is one connection, with what is on its way to the service.
type link struct {
	machine *machine
	session *session
	entered bool // the service has read the first message
	dead    bool // the service has given it up
	told    map[string]core.ObservedMember
	way     []hostapi.ToService
}

func newWired(t *testing.T, seed uint64) *wired {
	w := &wired{world: newWorld(t, seed), agents: map[*machine]*agent{}}
	for _, m := range w.machines {
		w.begin(m)
	}
	w.agents[w.machines[1]].plain = true
	return w
}

// begin starts a machine's process anew: its members stay, what it knew is lost.
func (w *wired) begin(m *machine) bool {
	w.hangUp(m)
	m.goal = nil
	w.agents[m] = &agent{plain: w.random.IntN(3) == 0, tokens: map[string]string{}}
	return true
}

func (w *wired) dial(m *machine) bool {
	a := w.agents[m]
	if a.link != nil {
		return false
	}
	conn, _ := net.Pipe()
	a.link = &link{machine: m, session: &session{conn: conn, info: core.Host{Name: m.name, Connected: true}, kick: make(chan struct{}, 1)}}
	return w.speak(m)
}

// hangUp gives up a connection: what is on its way may arrive yet, or not.
func (w *wired) hangUp(m *machine) bool {
	a := w.agents[m]
	if a == nil || a.link == nil {
		return false
	}
	w.old = append(w.old, a.link)
	a.link, m.goals = nil, nil
	return true
}

// observed is what a machine's process would tell of its members.
func (w *wired) observed(m *machine) map[string]core.ObservedMember {
	a, out := w.agents[m], map[string]core.ObservedMember{}
	if !a.listed {
		return out
	}
	for k, g := range m.wants() { // tokens are announced before there is anything
		if _, here := m.here[k]; !here {
			if a.tokens[k] == "" {
				a.tokens[k] = fmt.Sprintf("%s token %d", k, w.random.Int())
			}
			out[k] = core.ObservedMember{ID: g.ID, Generation: g.Generation, JoinTokenHash: a.tokens[k]}
		}
	}
	for k, g := range m.here {
		out[k] = core.ObservedMember{ID: g.ID, Generation: g.Generation, Present: true, Running: true, JoinTokenHash: a.tokens[k]}
	}
	return out
}

// speak sends a report, or what has changed since the last.
func (w *wired) speak(m *machine) bool {
	a := w.agents[m]
	if a.link == nil {
		return false
	}
	r := core.HostReport{Host: m.name}
	if m.goal != nil {
		r.Version, r.Complete = m.goal.Version, a.listed
	}
	now, told := w.observed(m), a.link.told
	a.link.told = now
	if told == nil || a.plain || w.random.IntN(10) == 0 {
		for _, o := range now {
			r.Members = append(r.Members, o)
		}
		a.link.way = append(a.link.way, hostapi.ToService{Report: &r})
		return true
	}
	c := &hostapi.Changes{HostReport: r}
	for k, o := range now {
		if was, known := told[k]; !known || !was.Equal(o) {
			c.Members = append(c.Members, o)
		}
	}
	for k, was := range told {
		if _, is := now[k]; !is {
			c.Gone = append(c.Gone, hostapi.Gone{ID: was.ID, Generation: was.Generation})
		}
	}
	w.done["changes"]++
	w.done["gone by a change"] += len(c.Gone)
	a.link.way = append(a.link.way, hostapi.ToService{Changes: c})
	return true
}

// hear lets the service read one message, of which it may take in what is in it twice.
func (w *wired) hear(l *link) bool {
	if l == nil || l.dead || len(l.way) == 0 {
		return false
	}
	msg := l.way[0]
	l.way = l.way[1:]
	ctx := context.Background()
	if !l.entered {
		if l.entered = w.fleet.enter(ctx, l.session) == nil; !l.entered {
			l.dead = true // refused: nothing could be stored
			return true
		}
	}
	for range 1 + w.random.IntN(8)/7 {
		if msg.Report != nil {
			w.fleet.report(ctx, l.session, *msg.Report)
		} else {
			w.fleet.changes(ctx, l.session, *msg.Changes)
		}
	}
	return true
}

// part lets the service notice that a connection is over.
func (w *wired) part(l *link) bool {
	if l == nil || l.dead {
		return false
	}
	if l.dead = true; l.entered {
		w.fleet.leave(l.session)
	}
	return true
}

// over reports whether a connection has come to its end at the service.
func (w *wired) over(l *link) bool {
	w.fleet.mu.Lock()
	defer w.fleet.mu.Unlock()
	return l != nil && (l.dead || l.entered && w.fleet.hosts[l.machine.name] != l.session)
}

// late lets something happen to a connection that its machine has given up.
func (w *wired) late() bool {
	if len(w.old) == 0 {
		return false
	}
	i := w.random.IntN(len(w.old))
	l := w.old[i]
	if w.random.IntN(2) == 0 && w.hear(l) {
		w.done["heard late"]++
		return true
	}
	w.old = slices.Delete(w.old, i, i+1)
	if l.entered && w.agents[l.machine].link != nil && w.agents[l.machine].link.entered {
		w.done["goodbyes after the next hello"]++
	}
	w.part(l)
	return true
}

func (w *wired) fetch(m *machine) bool {
	if l := w.agents[m].link; l == nil || !l.entered || w.over(l) {
		return false
	}
	goal, err := w.fleet.goal(context.Background(), m.name)
	if err != nil {
		w.fatalf("%v", err)
	}
	m.goals = append(m.goals, goal)
	return true
}

// crash ends the service, and all connections with it.
func (w *wired) crash() bool {
	for _, a := range w.agents {
		a.link = nil
	}
	w.old = nil
	w.kill()
	w.open()
	return true
}

// loseMachine is world.lose for a machine of which the service has noticed that it is away.
func (w *wired) loseMachine(m *machine) bool {
	if w.failing.Load() {
		return false
	}
	w.begin(m)
	w.old = slices.DeleteFunc(w.old, func(l *link) bool {
		if l.machine == m {
			w.part(l)
		}
		return l.machine == m
	})
	return w.lose(m)
}

func (w *wired) acts() []act {
	of := func(what string, do func(*machine) bool) func(*machine) (string, bool) {
		return func(m *machine) (string, bool) { return m.name + " " + what, do(m) }
	}
	listed := func(do func(*machine) bool) func(*machine) bool {
		return func(m *machine) bool { return w.agents[m].listed && do(m) }
	}
	rarely := func(do func(*machine) bool) func(*machine) bool {
		return func(m *machine) bool { return w.random.IntN(6) == 0 && do(m) }
	}
	return []act{
		{8, func(*machine) (string, bool) { return w.place() }},
		{4, func(*machine) (string, bool) { return w.remove() }},
		{8, of("is sent a goal", w.fetch)},
		{8, of("takes a goal", w.obey)},
		{6, of("lists what it runs", func(m *machine) bool { a := w.agents[m]; was := a.listed; a.listed = true; return !was })},
		{8, of("injects", listed(w.inject))},
		{8, of("tears down", listed(w.tearDown))},
		{10, of("speaks", w.speak)},
		{12, of("is heard", func(m *machine) bool { return w.hear(w.agents[m].link) })},
		{5, of("dials", w.dial)},
		{2, of("hangs up", rarely(w.hangUp))},
		{4, of("is heard or given up late", func(*machine) bool { return w.late() })},
		{2, of("is given up by the service", rarely(func(m *machine) bool { return w.part(w.agents[m].link) }))},
		{2, of("notices that it was given up", func(m *machine) bool { return w.over(w.agents[m].link) && w.hangUp(m) })},
		{1, of("restarts its process", rarely(w.begin))},
		{1, of("reboots", rarely(func(m *machine) bool { clear(m.here); return w.begin(m) }))},
		{1, of("is lost, its leases are released by force", rarely(w.loseMachine))},
		{1, of("watches the service crash", rarely(func(*machine) bool { return w.crash() }))},
		{1, of("sees writes fail", rarely(func(*machine) bool { w.failing.Store(true); return true }))},
		{3, of("sees writes succeed", func(*machine) bool { return w.failing.Swap(false) })},
		{3, of("waits", func(*machine) bool { w.now.Add(int64(time.Duration(w.random.IntN(40)) * time.Second)); return true })},
		{1, of("sees a purge", func(*machine) bool { w.fleet.purge(w.clock()); return true })},
	}
}

// check holds, beyond what is true of every world, that only a connection that counts vouches
// for members.
func (w *wired) check() {
	w.t.Helper()
	w.world.check()
	w.fleet.mu.Lock()
	defer w.fleet.mu.Unlock()
	for _, m := range w.fleet.live {
		if m.seenBy != nil && w.fleet.hosts[m.Host] != m.seenBy {
			w.fatalf("member %s is confirmed by a connection that is over", m.ID)
		}
	}
}

// settle ends all members the orderly way, the goodbyes of old connections last: nothing may
// be left.
func (w *wired) settle() {
	w.t.Helper()
	w.failing.Store(false)
	for range 3 {
		for _, row := range w.fleet.Members("") {
			if err := w.fleet.remove(context.Background(), w.fleet.live[row.ID], "the end"); err != nil {
				w.fatalf("remove: %v", err)
			}
		}
		for _, m := range w.machines {
			w.hangUp(m)
			w.dial(m)
			w.hear(w.agents[m].link)
			w.agents[m].listed = true
			w.fetch(m)
			for w.obey(m) {
			}
			for w.speak(m); w.tearDown(m); {
				w.speak(m)
			}
			for w.late() {
			}
			for w.speak(m); w.hear(w.agents[m].link); {
				w.check()
			}
		}
	}
	w.wantNothingLeft()
	w.t.Logf("%v", w.done)
	for _, what := range []string{"changes", "heard late", "goodbyes after the next hello"} {
		if w.done[what] == 0 {
			w.t.Errorf("it never came to %q: %v", what, w.done)
		}
	}
	if w.done["changes of owner"] < 10 {
		w.t.Errorf("too little happened: %v", w.done)
	}
}

func (w *wired) wantNothingLeft() {
	w.t.Helper()
	var err error
	leases, e := w.fleet.Leases(context.Background(), tenant)
	for _, l := range leases {
		if !l.Ended() {
			err = errors.Join(err, fmt.Errorf("%s is still %s: %s", l.Address, l.State, l.Reason))
		}
	}
	e = errors.Join(e, w.store.Read(context.Background(), func(tx store.Tx) error {
		rows, e := tx.ListMembers("", false)
		for _, m := range rows {
			err = errors.Join(err, fmt.Errorf("member %s is still %s", m.ID, m.State))
		}
		return e
	}))
	w.fleet.mu.Lock()
	defer w.fleet.mu.Unlock()
	if n := len(w.fleet.live) + len(w.fleet.leaving) + len(w.fleet.members); n > 0 {
		err = errors.Join(err, fmt.Errorf("the fleet remembers %d of %v", n, w.fleet.live))
	}
	if err = errors.Join(err, e); err != nil {
		w.fatalf("%v", err)
	}
}

// TestOneOwnerWhateverHappensToChanges is TestOneOwnerWhateverHappens for hosts that report
// what has changed, and for older ones that report everything: connections break with
// messages on their way, which arrive late or never, the service notices it before or after
// the host's next connection, processes on both sides crash, writes fail. An address has one
// owner at a time, and nothing is left at the end.
func TestOneOwnerWhateverHappensToChanges(t *testing.T) {
	t.Parallel()
	first := testseed.Of(t)
	for _, seed := range []uint64{first, first + 1} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newWired(t, seed)
			for acts := w.acts(); len(w.trace) < 1200; {
				w.step(acts)
				w.check()
			}
			w.settle()
		})
	}
}
