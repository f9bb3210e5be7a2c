package fleet

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/scaling"
	"github.com/sluice-gateway/sluice/internal/schedule"
	"github.com/sluice-gateway/sluice/internal/store"
)

// steadyAfter is for how long a gateway must have needed no new member, beyond the last
// backoff, for earlier attempts to be forgotten.
const steadyAfter = time.Minute

// pauseBound is how long a pause that nobody waits for holds queries back while its
// teardown is not confirmed.
const pauseBound = 30 * time.Second

// steering is what makes a gateway grow, shrink, wake and pause by itself.
type steering struct {
	spec     *core.Gateway // nil until it was read
	schedule []schedule.Entry
	awake    bool   // it was woken, and not paused since
	held     bool   // it was paused on purpose
	wakeDue  string // why it is to wake; "" if it isn't
	pauseDue string // why it is to pause as soon as it is idle
	lost     string // why the member that was lost last is gone
	problem  string // why a member could not be placed
	stuck    string // why a member did not come up that others run without
	lastUsed time.Time
	lowSince time.Time
	attempts int // to add members, one soon after the other
	lastAdd  time.Time
}

// woken notes that the gateway is wanted. The caller holds mu.
func (l *life) woken(now time.Time) {
	l.awake, l.held, l.failed = true, false, false
	l.wakeDue, l.pauseDue, l.lastUsed = "", "", now
}

// paused notes that it isn't; for one that is held, members.min does not count until it is
// woken. The caller holds mu.
func (l *life) paused(hold bool) {
	l.awake, l.held, l.failed = false, hold, false
	l.wakeDue, l.pauseDue, l.lost, l.problem, l.stuck = "", "", "", "", ""
}

// tried counts an attempt to add members. The caller holds mu.
func (l *life) tried(now time.Time) {
	if now.Sub(l.lastAdd) > scaling.Backoff(l.attempts)+steadyAfter {
		l.attempts = 0
	}
	l.attempts++
	l.lastAdd, l.lost = now, ""
}

// steer does for every gateway what is due.
func (f *Fleet) steer() {
	if err := f.readSpecs(); err != nil {
		if f.done.Err() == nil {
			f.log.Warn("gateways can't be read, will try again", "error", err)
		}
		return
	}
	f.runSchedules()
	f.mu.Lock()
	lives := slices.SortedFunc(maps.Values(f.lives), func(a, b *life) int { return cmp.Compare(a.ref.UID, b.ref.UID) })
	f.mu.Unlock()
	for _, l := range lives {
		f.steerOne(l)
	}
}

// readSpecs reads what gateways should be, if resources have changed.
func (f *Fleet) readSpecs() error {
	f.mu.Lock()
	stale := f.stale
	f.stale = false
	f.mu.Unlock()
	if !stale {
		return nil
	}
	specs := map[GatewayRef]*core.Gateway{}
	err := f.opts.Store.Read(f.done, func(tx store.Tx) error {
		return eachGateway(tx, func(ref GatewayRef, g *core.Gateway) { specs[ref] = g })
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.stale = true
		return err
	}
	f.takeSpecs(specs)
	return nil
}

// takeSpecs keeps what gateways should be; sweep forgets those that don't exist any more.
// The caller holds mu.
func (f *Fleet) takeSpecs(specs map[GatewayRef]*core.Gateway) {
	for _, l := range f.lives {
		if specs[l.ref] == nil {
			l.spec, l.schedule = nil, nil
		}
	}
	for ref, spec := range specs {
		l := f.life(ref)
		if g := f.gates[ref.UID]; g != nil {
			g.limit(spec, l.spec != nil && l.spec.Classes != spec.Classes)
		}
		l.spec, l.schedule = spec, nil
		for _, act := range spec.Schedule {
			if e, err := schedule.Parse(act); err == nil { // it was validated when it was applied
				l.schedule = append(l.schedule, e)
			}
		}
	}
}

// steerOne does what one gateway's state asks for.
func (f *Fleet) steerOne(l *life) {
	f.mu.Lock()
	uid := l.ref.UID
	if l.spec == nil || f.pausing[uid] != nil || f.wakes[uid] != nil {
		f.mu.Unlock()
		return
	}
	f.endReplacements(l)
	now := f.opts.Now()
	state := f.scalingState(l, now)
	if l.wakeDue != "" {
		reason := l.wakeDue
		l.woken(now)
		if state.Ready == 0 {
			f.wakeFor(l.ref, reason)
			f.mu.Unlock()
			return
		}
	}
	d := scaling.Decide(state)
	l.lowSince = d.LowSince
	if d.Add == 0 && !d.Replace && state.Starting == 0 && !now.Before(state.NotBefore) {
		l.stuck = "" // whatever it was, nothing is missing now
	}
	var add int
	switch {
	case d.Pause:
		f.pauseIdle(l, d.Reason)
	case d.Retire:
		f.retire(f.surplus(l), d.Reason)
	case len(f.hosts) == 0: // nothing can be added
	case d.Add > 0 && state.Ready+state.Starting == 0:
		l.tried(now)
		f.wakeFor(l.ref, d.Reason)
	case d.Add > 0:
		add = d.Add
	}
	var replaced *member
	if d.Replace && len(f.hosts) > 0 {
		add, replaced = 1, f.surplus(l)
	}
	f.mu.Unlock()
	if add > 0 {
		f.add(l, add, replaced, d.Reason)
	}
}

// scalingState is what decides about a gateway's members. The caller holds mu.
func (f *Fleet) scalingState(l *life, now time.Time) scaling.State {
	s := scaling.State{
		Now: now, Min: l.spec.Members.Min, Max: max(l.spec.Members.Max, 1), AutoPause: -1, ShrinkAfter: f.opts.ShrinkAfter,
		Awake: l.awake, Held: l.held, PauseDue: l.pauseDue, LowSince: l.lowSince, Lost: l.lost,
		NotBefore: l.lastAdd.Add(scaling.Backoff(l.attempts)),
	}
	if l.spec.AutoPause > 0 {
		s.AutoPause = time.Duration(l.spec.AutoPause)
	}
	for _, m := range f.members[l.ref.UID] {
		s.Busy += m.inflight
		switch {
		case m.leaves() || m.draining:
			continue
		case m.State == core.MemberReady && m.connected:
			s.Ready++
			if why := f.outdated(m, l.spec); why != "" {
				s.Outdated++
				s.Differs = why
			}
		default:
			s.Starting++
		}
		if m.replaces != "" {
			s.Replacing++
		}
	}
	s.Queued, s.Load = f.pressure(l)
	s.Busy += s.Queued
	if s.Busy > 0 {
		l.lastUsed = now
	}
	s.LastUsed = l.lastUsed
	return s
}

// outdated says how a member differs from what a new one would be, or "". The caller
// holds mu.
func (f *Fleet) outdated(m *member, spec *core.Gateway) string {
	if m.Size != spec.Size {
		return fmt.Sprintf("the gateway's size is now %g CPUs and %d MiB", spec.Size.CPUs, spec.Size.MemoryMiB)
	}
	if s := f.hosts[m.Host]; s != nil && s.info.Image != "" && m.Image != "" && s.info.Image != m.Image {
		return fmt.Sprintf("host %s now has program %s, not %s", m.Host, s.info.Image, m.Image)
	}
	return ""
}

// surplus chooses the member that a gateway can do without: one that is outdated if there is
// any, then the one with the fewest queries, then the youngest. The caller holds mu.
func (f *Fleet) surplus(l *life) *member {
	var ready []*member
	for _, m := range f.members[l.ref.UID] {
		if !m.leaves() && !m.draining && m.connected && m.State == core.MemberReady && m.replaces == "" {
			ready = append(ready, m)
		}
	}
	if len(ready) == 0 {
		return nil
	}
	current := func(m *member) int {
		if f.outdated(m, l.spec) != "" {
			return 0
		}
		return 1
	}
	return slices.MinFunc(ready, func(a, b *member) int {
		return cmp.Or(cmp.Compare(current(a), current(b)), cmp.Compare(a.inflight, b.inflight), b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
}

// retire lets a member finish what it has; overdue takes it away then. The caller holds mu.
func (f *Fleet) retire(m *member, reason string) {
	if m == nil {
		return
	}
	m.draining, m.retiring, m.retiredAt = true, reason, f.opts.Now()
	f.settle(m, reason)
	f.log.Info("member retires", "member", m.ID, "gateway", m.Gateway, "reason", reason)
	f.broadcast()
}

// endReplacements retires the members whose replacements are ready. The caller holds mu.
func (f *Fleet) endReplacements(l *life) {
	for _, m := range f.members[l.ref.UID] {
		if m.replaces == "" || m.leaves() || m.draining || !m.connected || m.State != core.MemberReady {
			continue
		}
		old := f.live[m.replaces]
		m.replaces, l.stuck = "", ""
		l.attempts = max(l.attempts-1, 0) // that one came to something: the next need not wait
		if old != nil && !old.leaves() && !old.draining {
			f.retire(old, fmt.Sprintf("replaced by %s: %s", m.ID, m.because))
		}
	}
}

// lose notes that a member is lost, and if it never came up, what others run without meanwhile.
// The caller holds mu.
func (f *Fleet) lose(m *member, reason string) {
	l := f.lifeOf(m)
	l.lost = fmt.Sprintf("%s: %s", m.ID, reason)
	if !m.ReadyAt.IsZero() || f.facts(l).Ready == 0 {
		return
	}
	what := "another member is to come"
	if m.replaces != "" {
		what = "members are to be replaced (" + m.because + ")"
	}
	l.stuck = fmt.Sprintf("%s, but %s did not come up: %s; those that run stay. See the log of host %s for what it wrote: "+
		"another is tried after %s, or at once when that host has another program", what, m.ID, reason, m.Host, scaling.Backoff(l.attempts))
}

// add places members that are not waited for; the first may take the place of another.
func (f *Fleet) add(l *life, n int, replaced *member, reason string) {
	f.mu.Lock()
	l.tried(f.opts.Now())
	f.mu.Unlock()
	for range n {
		m, err := f.place(f.done, l.ref)
		f.mu.Lock()
		if err != nil {
			l.problem = fmt.Sprintf("another member (%s) could not be placed: %s", reason, errs.As(err).Message)
			f.log.Warn("a member could not be placed, will try again", "gateway", l.ref.Name, "for", reason, "error", err)
			f.mu.Unlock()
			return
		}
		l.problem = ""
		if replaced != nil {
			m.replaces, m.because, replaced = replaced.ID, reason, nil
		}
		f.log.Info("gateway grows", "gateway", l.ref.Name, "member", m.ID, "reason", reason)
		f.mu.Unlock()
	}
}

// pauseIdle begins a pause that nobody waits for. The caller holds mu, and the gateway has
// no query.
func (f *Fleet) pauseIdle(l *life, reason string) {
	mine, end := f.drainAll(l, reason, l.pauseDue != "")
	f.wg.Go(func() {
		defer end()
		ctx, cancel := context.WithTimeout(f.done, pauseBound)
		defer cancel()
		if err := f.tearDown(ctx, l.ref, mine, reason); err != nil && f.done.Err() == nil {
			f.log.Warn("a pause is not complete", "gateway", l.ref.Name, "error", err)
		}
	})
}

// scheduleChecked is the setting that says until when schedules have been acted on.
const scheduleChecked = "schedule.checked"

// runSchedules notes what schedules have asked for since it last ran. Without a host nothing
// could be woken: then it waits.
func (f *Fleet) runSchedules() {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.opts.Now()
	if len(f.hosts) == 0 {
		return
	}
	scheduled := false
	for _, l := range f.lives {
		scheduled = scheduled || len(l.schedule) > 0
		e, due := schedule.Due(l.schedule, f.checked, now)
		switch {
		case !due:
		case e.Act.Action == core.ScheduleWake:
			l.wakeDue, l.pauseDue = e.String(), ""
		default:
			l.wakeDue, l.pauseDue = "", e.String()
		}
	}
	f.checked = now
	if scheduled && now.Sub(f.checkedStored).Abs() >= time.Minute {
		f.checkedStored = now
		f.wg.Go(func() { f.storeChecked(now) })
	}
}

func (f *Fleet) storeChecked(at time.Time) {
	err := f.opts.Store.Write(f.done, func(tx store.Tx) error { return tx.PutSetting(scheduleChecked, at.UTC().Format(time.RFC3339)) })
	if err != nil && f.done.Err() == nil {
		f.log.Warn("it could not be stored until when schedules have been acted on", "error", err)
	}
}

// loadChecked reads until when an earlier process has acted on schedules.
func loadChecked(tx store.Tx, now time.Time) (time.Time, error) {
	text, err := tx.Setting(scheduleChecked)
	if errs.ClassOf(err) == errs.NotFound {
		return now, nil
	}
	if err != nil {
		return now, err
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil && at.Before(now) {
		return at, nil
	}
	return now, nil
}

// pressure is how many queries wait at a gateway, and how many members' slots those that
// wait and run would fill. The caller holds mu.
func (f *Fleet) pressure(l *life) (queued int, load float64) {
	g := f.gates[l.ref.UID]
	if g == nil {
		return 0, 0
	}
	for _, line := range g.lines {
		waits := line.queue.Len()
		queued += waits
		load = max(load, float64(waits+line.running)/float64(line.limits.Concurrency))
	}
	return queued, load
}
