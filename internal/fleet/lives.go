package fleet

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/lifecycle"
	"github.com/sluice-gateway/sluice/internal/store"
)

// maxUnsaved bounds the changes of state that wait for a store that does not take them.
const maxUnsaved = 10_000

// life is what the fleet knows of one gateway as a whole.
type life struct {
	ref    GatewayRef
	state  core.GatewayState
	since  time.Time
	reason string
	// cause is why the gateway wakes, drains or failed: the reason of the next change.
	cause  string
	failed bool // the last wake failed
	steering
}

// Life is how a gateway stands.
type Life struct {
	State  core.GatewayState
	Since  time.Time // zero: it has never been anything else
	Reason string
	// Problem is why it has fewer members than it should, or others, or "".
	Problem string
}

// TransitionCount is what changes of state are counted by.
type TransitionCount struct{ Of, Event, To string }

// Transitions returns how many changes of state there were since this process started.
func (f *Fleet) Transitions() map[TransitionCount]int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.counted)
}

// GatewayStates returns how many gateways are in each state.
func (f *Fleet) GatewayStates() map[core.GatewayState]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[core.GatewayState]int{}
	for _, l := range f.lives {
		if l.spec != nil {
			out[l.state]++
		}
	}
	return out
}

// life returns what is known of a gateway. The caller holds mu.
func (f *Fleet) life(ref GatewayRef) *life {
	l := f.lives[ref.UID]
	if l == nil {
		l = &life{ref: ref, state: core.GatewayPaused}
		f.lives[ref.UID] = l
	}
	return l
}

// lifeOf returns what is known of a member's gateway. The caller holds mu.
func (f *Fleet) lifeOf(m *member) *life {
	return f.life(GatewayRef{Tenant: m.Tenant, Name: m.Gateway, UID: m.GatewayUID})
}

// facts are what decides about a gateway's state. The caller holds mu.
func (f *Fleet) facts(l *life) lifecycle.GatewayFacts {
	out := lifecycle.GatewayFacts{
		Pausing: f.pausing[l.ref.UID] != nil, Waking: f.wakes[l.ref.UID] != nil, Failed: l.failed,
	}
	for _, m := range f.members[l.ref.UID] {
		switch {
		case m.leaves() || m.draining:
			out.Leaving++
		case m.State == core.MemberReady && m.connected:
			out.Ready++
		default:
			out.Starting++
		}
	}
	return out
}

// leaves reports whether a member is on its way out. The caller holds mu.
func (m *member) leaves() bool {
	return m.condemned != "" || m.State == core.MemberLeaving || m.State == core.MemberGone
}

// settle notes what a change of a member has made of it and of its gateway. The caller
// holds mu.
func (f *Fleet) settle(m *member, reason string) {
	f.track(m)
	if m.told == "" { // it may have dialled back before the one who placed it comes to say so
		f.noteMember(m, lifecycle.Placed, placedWhere(m.Member))
	}
	facts := lifecycle.MemberFacts{Stored: m.State, Draining: m.draining}
	if event, changed := lifecycle.OfMember(m.told, facts); changed {
		f.noteMember(m, event, reason)
	}
	l := f.lifeOf(m)
	if facts := f.facts(l); facts.Ready == 0 && !facts.Pausing && !facts.Waking && !facts.Failed {
		l.cause = fmt.Sprintf("member %s: %s", m.ID, reason) // what left nothing running
	}
	f.settleGateway(l)
}

// noteMember notes a change of a member. The caller holds mu.
func (f *Fleet) noteMember(m *member, event lifecycle.Event, reason string) {
	next, _ := lifecycle.Members.Next(m.told, event)
	f.note(core.Transition{
		Tenant: m.Tenant, Of: core.TransitionOfMember, UID: m.ID, GatewayUID: m.GatewayUID,
		From: string(m.told), To: string(next), Event: string(event), Reason: reason,
	})
	m.told = next
}

// settleGateway notes what the facts have made of a gateway. The caller holds mu.
func (f *Fleet) settleGateway(l *life) {
	facts := f.facts(l)
	event, changed := lifecycle.OfGateway(l.state, facts)
	if !changed {
		return
	}
	from := l.state
	l.state, _ = lifecycle.Gateways.Next(l.state, event)
	l.since, l.reason = f.opts.Now(), l.cause
	if event == lifecycle.MemberReady {
		l.failed, l.awake = false, true
		l.reason = "a member is ready"
	}
	f.log.Info("gateway "+string(l.state), "gateway", l.ref.Name, "reason", l.reason)
	f.note(core.Transition{
		Tenant: l.ref.Tenant, Of: core.TransitionOfGateway, UID: l.ref.UID, GatewayUID: l.ref.UID,
		From: string(from), To: string(l.state), Event: string(event), Reason: l.reason,
	})
}

// note queues a change of state for the store. The caller holds mu.
func (f *Fleet) note(t core.Transition) {
	t.At = f.opts.Now()
	f.unsaved = append(f.unsaved, t)
	if over := len(f.unsaved) - maxUnsaved; over > 0 {
		f.unsaved = slices.Delete(f.unsaved, 0, over)
	}
	f.counted[TransitionCount{Of: t.Of, Event: t.Event, To: t.To}]++
}

// loadLives reads how gateways stood when an earlier process ended.
func (f *Fleet) loadLives(tx store.Tx) error {
	last, err := tx.ListTransitions(store.TransitionFilter{Of: core.TransitionOfGateway, Last: 1})
	if err != nil {
		return err
	}
	specs := map[GatewayRef]*core.Gateway{}
	names := map[string]GatewayRef{}
	if err := eachGateway(tx, func(ref GatewayRef, g *core.Gateway) { specs[ref], names[ref.UID] = g, ref }); err != nil {
		return err
	}
	if f.checked, err = loadChecked(tx, f.opts.Now()); err != nil {
		return err
	}
	for _, t := range last {
		ref, exists := names[t.UID]
		if !exists {
			continue
		}
		f.lives[t.UID] = &life{
			ref: ref, state: core.GatewayState(t.To), since: t.At, reason: t.Reason,
			failed: core.GatewayState(t.To) == core.GatewayFailed, cause: "the service was started again",
		}
	}
	f.takeSpecs(specs)
	if err := f.loadUsed(tx); err != nil {
		return err
	}
	for _, l := range f.lives {
		// One that has never been anything else is not held: members.min counts.
		l.held = !l.since.IsZero() && (l.state == core.GatewayPaused || l.state == core.GatewayDraining)
		l.awake = l.state == core.GatewayRunning || l.state == core.GatewayWaking
	}
	return nil
}

// lastTold returns which state the history says that a member came to last: its row may
// have been stored before or after.
func lastTold(tx store.Tx) (func(core.Member) core.MemberState, error) {
	last, err := tx.ListTransitions(store.TransitionFilter{Of: core.TransitionOfMember, Last: 1})
	if err != nil {
		return nil, err
	}
	states := map[string]core.MemberState{}
	for _, t := range last {
		states[t.UID] = core.MemberState(t.To)
	}
	return func(m core.Member) core.MemberState {
		if s, known := states[m.ID]; known {
			return s
		}
		return m.State // what was noted of it is purged
	}, nil
}

// eachGateway calls fn with every gateway of every tenant.
func eachGateway(tx store.Tx, fn func(GatewayRef, *core.Gateway)) error {
	tenants, err := tx.ListTenants()
	if err != nil {
		return err
	}
	for _, t := range tenants {
		set, err := tx.ListResources(t, core.KindGateway)
		if err != nil {
			return err
		}
		for _, g := range set {
			fn(GatewayRef{Tenant: t, Name: g.Spec.ResourceName(), UID: g.UID}, g.Spec.(*core.Gateway))
		}
	}
	return nil
}

// Life returns how a gateway stands.
func (f *Fleet) Life(gatewayUID string) Life {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.lives[gatewayUID]
	if l == nil {
		return Life{State: core.GatewayPaused}
	}
	return Life{State: l.state, Since: l.since, Reason: l.reason, Problem: cmp.Or(l.problem, l.stuck)}
}

// History returns the newest changes of state of a tenant's gateways or members, each
// object's newest first, by UID.
func (f *Fleet) History(ctx context.Context, filter store.TransitionFilter) (map[string][]core.Transition, error) {
	out := map[string][]core.Transition{}
	f.saving.Lock() // so that none is seen twice, or not at all
	defer f.saving.Unlock()
	f.mu.Lock()
	for _, t := range slices.Backward(f.unsaved) {
		if (filter.Tenant == "" || t.Tenant == filter.Tenant) && t.Of == filter.Of && (filter.UID == "" || t.UID == filter.UID) && (filter.GatewayUID == "" || t.GatewayUID == filter.GatewayUID) {
			out[t.UID] = append(out[t.UID], t)
		}
	}
	f.mu.Unlock()
	err := f.opts.Store.Read(ctx, func(tx store.Tx) error {
		stored, err := tx.ListTransitions(filter)
		for _, t := range stored {
			out[t.UID] = append(out[t.UID], t)
		}
		return err
	})
	return out, err
}
