package fleet

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-gateway/sluice/internal/admission"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// GatewayRef names a gateway for ever: a gateway made again under the same name is
// another one.
type GatewayRef struct {
	Tenant core.TenantID
	Name   string
	UID    string
}

// Request asks for a member for one piece of work.
type Request struct {
	Gateway GatewayRef
	// Class is whose slots the work takes. Work without a class takes none and waits for
	// nothing but a member.
	Class        core.QueryClass
	Limits       core.ClassLimits // of the class
	User, Source string           // whose turn it is
	Statement    uint64           // stands for what is asked: how long it takes as a rule is learnt
	Avoid        string           // a member that is taken only if there is no other
	ID           string           // of the query; it shows in Order
	// Queued is called if the work has to wait for a slot or a member, with how many of its
	// class wait already. Default: none.
	Queued func(ahead int)
	// Cut is called if the work loses its slot because its client has taken nothing of the
	// result for so long while others wait. Default: it does not lose it.
	Cut func(idle time.Duration)
}

// Grant is the right to run one query on a member. Release must be called once.
type Grant struct {
	Member core.Member
	// Wake holds the phases of the wake that this query waited for; empty if the
	// member was ready.
	Wake    []core.Phase
	Release func()
	Work    *Work // how far it is; nil for a grant that was refused
}

// Work is what a granted query does to its member. Its methods may be called at any time.
type Work struct {
	fleet    *Fleet
	member   *member
	refresh  bool
	class    core.QueryClass
	asks     uint64 // Request.Statement
	begun    time.Time
	streamed atomic.Int64
	gate     *gate
	share    *admission.Share[*waiter]
	at       int  // in member.work
	answered bool // under Fleet.mu
	user     string
	cut      func(idle time.Duration)
	lost     bool         // its slot is being taken away; under Fleet.mu
	end      func()       // gives the slot back; only the first call counts
	handed   atomic.Int64 // since when it is the client's turn, in nanoseconds; 0: it isn't
}

// Streamed adds to what the query has streamed, in bytes, which is handed to the client now.
func (w *Work) Streamed(n int) {
	w.streamed.Add(int64(n))
	w.handed.Store(w.fleet.opts.Now().UnixNano())
}

// Reads tells that the client has taken what was streamed, and more is waited for.
func (w *Work) Reads() { w.handed.Store(0) }

// Answered tells that the member has begun to answer: how fast it is, beside others, shows
// there. It is called once.
func (w *Work) Answered() {
	now := w.fleet.opts.Now()
	w.fleet.mu.Lock()
	defer w.fleet.mu.Unlock()
	w.answered, w.member.answered = true, now
	if w.asks == 0 || len(w.fleet.members[w.gate.ref.UID]) < 2 {
		return
	}
	if ratio := w.gate.typical.Ratio(w.asks, now.Sub(w.begun)); ratio > 0 {
		w.member.pace.Observe(now, ratio)
	}
}

// gate is the admission to one gateway. Fleet.mu guards it.
type gate struct {
	ref     GatewayRef
	lines   map[core.QueryClass]*line
	calls   []*waiter // those without a class, who wait for a member only
	typical admission.Typical
}

// line is the part of one class.
type line struct {
	queue   admission.Line[*waiter]
	limits  core.ClassLimits // as the newest request had them, or the gateway
	asked   bool             // a request had them
	running int
	took    time.Duration // what queries took lately, as a moving average
	refused uint64
}

// waiter is a request that waits. Fleet.mu guards all but done.
type waiter struct {
	req    Request
	since  time.Time
	asleep bool  // the gateway had no member when it came
	wake   *wake // that it waits for
	ticket *admission.Ticket[*waiter]
	grant  Grant
	err    error
	done   chan struct{} // closed once there is a grant or an error
}

// classKeys are the classes in the order in which they are served.
var classKeys = []core.QueryClass{core.ClassInteractive, core.ClassRefresh}

// maxGates is how many gateways are remembered before idle ones are forgotten.
const maxGates = 64

// gateOf finds, or makes, a gateway's gate. The caller holds mu.
func (f *Fleet) gateOf(ref GatewayRef) *gate {
	g := f.gates[ref.UID]
	if g == nil {
		if len(f.gates) >= maxGates {
			f.forgetGates()
		}
		g = &gate{ref: ref, lines: map[core.QueryClass]*line{}}
		for _, c := range classKeys {
			g.lines[c] = &line{limits: core.DefaultLimits(c)}
		}
		if l := f.lives[ref.UID]; l != nil && l.spec != nil {
			g.limit(l.spec, false)
		}
		f.gates[ref.UID] = g
	}
	return g
}

// limit takes over what a gateway allows its classes. If that has not changed, what requests
// came with is newer. The caller holds Fleet.mu.
func (g *gate) limit(spec *core.Gateway, changed bool) {
	for c, l := range g.lines {
		if changed || !l.asked {
			l.limits = spec.Limits(c)
		}
	}
}

func (f *Fleet) forgetGates() {
	for uid, g := range f.gates {
		if !g.waits() && g.running() == 0 && len(f.members[uid]) == 0 {
			delete(f.gates, uid)
		}
	}
}

func (g *gate) waits() bool {
	n := len(g.calls)
	for _, l := range g.lines {
		n += l.queue.Len()
	}
	return n > 0
}

func (g *gate) running() (n int) {
	for _, l := range g.lines {
		n += l.running
	}
	return n
}

// Acquire returns a ready member of the gateway, without taking a slot.
func (f *Fleet) Acquire(ctx context.Context, gw GatewayRef) (Grant, error) {
	return f.Admit(ctx, Request{Gateway: gw})
}

// Admit returns a ready member that has a free slot of the class, waking the gateway if
// none runs; whoever finds neither waits in the class's line, or is refused at once if
// that is full. A wake goes on when those who caused it go away.
func (f *Fleet) Admit(ctx context.Context, req Request) (Grant, error) {
	now := f.opts.Now()
	f.mu.Lock()
	g := f.gateOf(req.Gateway)
	if l := g.lines[req.Class]; l != nil {
		l.limits, l.asked = req.Limits, true
	}
	if m := f.freeMember(g, req, now); m != nil {
		grant := f.grant(g, m, req, now, nil)
		f.mu.Unlock()
		return grant, nil
	}
	w, ahead, err := f.enqueue(g, req, now)
	f.mu.Unlock()
	if err != nil {
		return Grant{}, err
	}
	if req.Queued != nil {
		req.Queued(ahead)
	}
	select {
	case <-w.done:
		return w.grant, w.err
	case <-ctx.Done():
		return f.giveUp(w, func() error { return f.waitError(ctx, w) })
	case <-f.done.Done():
		return f.giveUp(w, func() error {
			return errs.New(errs.Unavailable, "the service is stopping").WithStep(errs.StepWake)
		})
	}
}

// freeMember returns the member that serves a request now, or nil. Nobody overtakes those
// who wait. The caller holds mu.
func (f *Fleet) freeMember(g *gate, req Request, now time.Time) *member {
	if f.pausing[g.ref.UID] != nil {
		return nil
	}
	if l := g.lines[req.Class]; l != nil && l.queue.Len() > 0 {
		return nil
	}
	return f.leastLoaded(g, req, now)
}

// grant gives a member to a request. The share is that of one who has waited in the line;
// nil for one who comes straight. The caller holds mu.
func (f *Fleet) grant(g *gate, m *member, req Request, now time.Time, share *admission.Share[*waiter]) Grant {
	w := &Work{fleet: f, member: m, class: req.Class, refresh: req.Class == core.ClassRefresh, asks: req.Statement, begun: now, gate: g, share: share, at: len(m.work), user: req.User, cut: req.Cut}
	w.end = sync.OnceFunc(w.release)
	if l := g.lines[req.Class]; l != nil {
		if share == nil {
			w.share = l.queue.Begin(admission.Flow{User: req.User, Source: req.Source})
		}
		l.running++
	}
	m.work = append(m.work, w)
	m.inflight++
	return Grant{Member: m.Member, Work: w, Release: w.end}
}

// release ends a query and gives its slot to the next.
func (w *Work) release() {
	f, m := w.fleet, w.member
	now := f.opts.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	last := len(m.work) - 1
	m.work[w.at], m.work[last].at = m.work[last], w.at
	m.work[last] = nil
	m.work = m.work[:last]
	m.inflight--
	f.lifeOf(m).lastUsed = now
	if l := w.gate.lines[w.class]; l != nil {
		l.running--
		l.queue.Done(w.share)
		l.took += (now.Sub(w.begun) - l.took) / 8
	}
	if m.inflight == 0 {
		f.broadcast()
	} else {
		f.dispatch(w.gate)
	}
}

// enqueue lets a request wait. The caller holds mu.
func (f *Fleet) enqueue(g *gate, req Request, now time.Time) (w *waiter, ahead int, err error) {
	w = &waiter{req: req, since: now, done: make(chan struct{})}
	if l := g.lines[req.Class]; l == nil {
		g.calls = append(g.calls, w)
	} else {
		ahead = l.queue.Len()
		lim := admission.Limits{Total: l.limits.Queue, PerUser: l.limits.QueuePerUser}
		w.ticket, err = l.queue.Enter(admission.Flow{User: req.User, Source: req.Source}, w, lim)
		if err != nil {
			l.refused++
			return nil, 0, f.fullError(g, l, req, err)
		}
	}
	f.queued++
	if w.asleep = f.usable(g.ref.UID) == 0; w.asleep {
		f.rouse(g)
		w.wake = f.wakes[g.ref.UID]
	}
	return w, ahead, nil
}

// fullError refuses a request. The caller holds mu.
func (f *Fleet) fullError(g *gate, l *line, req Request, why error) error {
	wait := time.Second
	if slots := f.slots(g, req.Class); slots > 0 {
		wait = min(max(l.took*time.Duration(l.queue.Len())/time.Duration(slots), wait), time.Minute)
	}
	hint, field := "try again later, or raise classes.%s.%s of the gateway, or its members.max", "queue"
	var full *admission.FullError
	if errors.As(why, &full) && full.OfUser {
		field = "queuePerUser"
	}
	return errs.New(errs.Exhausted, "gateway %s takes no more %s queries now: %w", g.ref.Name, req.Class, why).
		WithStep(errs.StepQueue).WithRetryAfter(wait).WithHint(hint, req.Class, field).On("Gateway/"+g.ref.Name, "")
}

// rouse begins a wake if the gateway has no member that could serve those who wait. The
// caller holds mu.
func (f *Fleet) rouse(g *gate) {
	uid := g.ref.UID
	if f.pausing[uid] == nil && f.done.Err() == nil && f.usable(uid) == 0 {
		f.wakeFor(g.ref, "a query needs it")
	}
}

// dispatchAll serves whoever waits at any gateway. The caller holds mu.
func (f *Fleet) dispatchAll() {
	if f.queued == 0 {
		return
	}
	for _, g := range f.gates {
		f.dispatch(g)
	}
}

// dispatch serves those who wait at a gateway as far as members have room, and wakes it if
// it has none. The caller holds mu.
func (f *Fleet) dispatch(g *gate) {
	if f.pausing[g.ref.UID] != nil || !g.waits() {
		return
	}
	now := f.opts.Now()
	for len(g.calls) > 0 {
		w := g.calls[0]
		m := f.leastLoaded(g, w.req, now)
		if m == nil {
			break
		}
		g.calls = g.calls[1:]
		f.serve(g, m, w, now, nil)
	}
	for _, c := range classKeys {
		l := g.lines[c]
		for l.queue.Len() > 0 && f.leastLoaded(g, Request{Class: c, Limits: l.limits}, now) != nil {
			t, share := l.queue.Next()
			req := t.Value.req
			req.Limits = l.limits // they may have changed while it waited
			f.serve(g, f.leastLoaded(g, req, now), t.Value, now, share)
		}
	}
	if g.waits() {
		f.rouse(g)
	}
}

// serve gives a member to one who waited. The caller holds mu.
func (f *Fleet) serve(g *gate, m *member, w *waiter, now time.Time, share *admission.Share[*waiter]) {
	w.grant = f.grant(g, m, w.req, now, share)
	if w.wake == nil && w.asleep {
		w.wake = f.wakes[g.ref.UID]
	}
	if w.wake != nil {
		w.grant.Wake = clip(wakePhases(w.wake.begun, m), now.Sub(w.since))
	}
	f.queued--
	close(w.done)
}

// failAll ends the wait of everybody at a gateway. The caller holds mu.
func (f *Fleet) failAll(g *gate, err error) {
	all := g.calls
	g.calls = nil
	for _, c := range classKeys {
		all = append(all, g.lines[c].queue.Drain()...)
	}
	for _, w := range all {
		f.queued--
		w.err = err
		close(w.done)
	}
}

// giveUp takes a waiter out whose caller will not wait any longer. A grant that came at the
// same moment is given back.
func (f *Fleet) giveUp(w *waiter, why func() error) (Grant, error) {
	f.mu.Lock()
	select {
	case <-w.done:
		f.mu.Unlock()
		if w.err != nil {
			return Grant{}, w.err
		}
		w.grant.Release()
		return Grant{}, why()
	default:
	}
	g := f.gateOf(w.req.Gateway)
	if l := g.lines[w.req.Class]; l != nil {
		l.queue.Leave(w.ticket)
	} else {
		g.calls = slices.DeleteFunc(g.calls, func(o *waiter) bool { return o == w })
	}
	f.queued--
	f.mu.Unlock()
	return Grant{}, why()
}

// waitError says what a request waited for in vain.
func (f *Fleet) waitError(ctx context.Context, w *waiter) error {
	gw := w.req.Gateway
	f.mu.Lock()
	defer f.mu.Unlock()
	slots := f.slots(f.gateOf(gw), w.req.Class)
	if w.req.Class == "" || slots == 0 {
		return notAwake(ctx, gw)
	}
	e := errs.As(context.Cause(ctx))
	return errs.New(e.Class, "all %d slots of gateway %s for %s queries were taken for %s: %w",
		slots, gw.Name, w.req.Class, f.opts.Now().Sub(w.since).Round(time.Millisecond), e).
		WithStep(errs.StepQueue).WithHint("\"sluice queries\" shows what runs; more members (members.max) run more at once")
}
