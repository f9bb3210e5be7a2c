package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

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

// Grant is the right to run one query on a member. Release must be called once.
type Grant struct {
	Member core.Member
	// Wake holds the phases of the wake that this query waited for; empty if the
	// member was ready.
	Wake    []core.Phase
	Release func()
}

// wake is one injection that any number of queries wait for.
type wake struct {
	done   chan struct{}
	err    error
	phases []core.Phase
}

// Acquire returns a ready member of the gateway, waking the gateway if none runs. A
// wake goes on when the caller that caused it goes away.
func (f *Fleet) Acquire(ctx context.Context, gw GatewayRef) (Grant, error) {
	var phases []core.Phase
	begun := f.opts.Now()
	for {
		grant, w := f.tryAcquire(gw)
		if w == nil {
			grant.Wake = clip(phases, f.opts.Now().Sub(begun))
			return grant, nil
		}
		select {
		case <-w.done:
			if w.err != nil {
				return Grant{}, w.err
			}
			phases = w.phases
		case <-ctx.Done():
			return Grant{}, waitError(ctx, gw)
		case <-f.done.Done():
			return Grant{}, errs.New(errs.Unavailable, "the service is stopping").WithStep(errs.StepWake)
		}
	}
}

// clip shortens the phases of a wake, from the first on, to what a query that joined it
// waited for.
func clip(phases []core.Phase, waited time.Duration) []core.Phase {
	var sum time.Duration
	for _, p := range phases {
		sum += p.Duration
	}
	out := slices.Clone(phases)
	for excess := sum - waited; excess > 0 && len(out) > 0; {
		if out[0].Duration > excess {
			out[0].Duration -= excess
			break
		}
		excess -= out[0].Duration
		out = out[1:]
	}
	return out
}

func waitError(ctx context.Context, gw GatewayRef) error {
	e := errs.As(ctx.Err())
	return errs.New(e.Class, "gateway %s was not awake in time: %w", gw.Name, ctx.Err()).WithStep(errs.StepWake)
}

// tryAcquire takes a ready member, or returns the wake to wait for.
func (f *Fleet) tryAcquire(gw GatewayRef) (Grant, *wake) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if paused := f.pausing[gw.UID]; paused != nil {
		return Grant{}, &wake{done: paused} // then the gateway is woken again
	}
	if m := f.leastLoaded(gw.UID); m != nil {
		m.inflight++
		return Grant{Member: m.Member, Release: f.releaser(m)}, nil
	}
	w := f.wakes[gw.UID]
	if w == nil {
		w = &wake{done: make(chan struct{})}
		f.wakes[gw.UID] = w
		f.wg.Add(1)
		go f.runWake(gw, w)
	}
	return Grant{}, w
}

// leastLoaded returns the ready member with the fewest queries. The caller holds mu.
func (f *Fleet) leastLoaded(gatewayUID string) *member {
	var best *member
	for _, m := range f.members[gatewayUID] {
		if !m.connected || m.draining || m.condemned != "" || m.State != core.MemberReady {
			continue
		}
		if best == nil || m.inflight < best.inflight || m.inflight == best.inflight && m.ID < best.ID {
			best = m
		}
	}
	return best
}

func (f *Fleet) releaser(m *member) func() {
	return sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		m.inflight--
		if m.inflight == 0 {
			f.broadcast()
		}
	})
}

// runWake brings one member of the gateway up, or says why not.
func (f *Fleet) runWake(gw GatewayRef, w *wake) {
	defer f.wg.Done()
	w.phases, w.err = f.wakeUp(gw)
	if w.err != nil {
		f.log.Warn("wake failed", "gateway", gw.Name, "error", w.err)
	}
	f.mu.Lock()
	delete(f.wakes, gw.UID)
	f.mu.Unlock()
	close(w.done)
}

// wakeUp waits for a member that is on its way already; if there is none, or it does
// not arrive, it places one.
func (f *Fleet) wakeUp(gw GatewayRef) ([]core.Phase, error) {
	start := f.opts.Now()
	if m := f.starting(gw.UID); m != nil {
		if err := f.waitReady(gw, m); err == nil {
			return f.wakePhases(start, m), nil
		} else if f.done.Err() != nil {
			return nil, err
		}
		f.waitPaused(gw.UID, m) // nothing is placed while the gateway is paused
	}
	for {
		m, err := f.place(f.done, gw)
		if err != nil {
			e := *errs.As(err)
			e.Message = fmt.Sprintf("wake gateway %s: %s", gw.Name, e.Message)
			e.Step = errs.StepWake
			return nil, &e
		}
		err = f.waitReady(gw, m)
		if err == nil {
			return f.wakePhases(start, m), nil
		}
		if !f.waitPaused(gw.UID, m) {
			return nil, err
		}
	}
}

// waitPaused reports whether a pause took the member away, once that pause is over:
// those who wait for the wake have waited for the gateway after the pause.
func (f *Fleet) waitPaused(gatewayUID string, m *member) bool {
	f.mu.Lock()
	draining, paused := m.draining, f.pausing[gatewayUID]
	f.mu.Unlock()
	if !draining {
		return false
	}
	if paused != nil {
		select {
		case <-paused:
		case <-f.done.Done():
		}
	}
	return f.done.Err() == nil
}

// waitReady waits until a member is ready, or never will be.
func (f *Fleet) waitReady(gw GatewayRef, m *member) error {
	var state core.MemberState
	var reason string
	err := f.wait(f.done, func() bool {
		state, reason = m.State, m.Reason
		if m.condemned != "" {
			reason = m.condemned
		}
		return state == core.MemberReady || m.condemned != "" || state == core.MemberLeaving || state == core.MemberGone
	})
	switch {
	case errors.Is(err, context.Canceled):
		return errs.New(errs.Unavailable, "the service is stopping").WithStep(errs.StepWake)
	case err != nil:
		return err
	case state != core.MemberReady || reason != "":
		return errs.New(errs.Unavailable, "wake gateway %s: member %s did not come up: %s%s", gw.Name, m.ID, reason, f.problems(m.Host)).
			WithStep(errs.StepWake).WithHint("\"sluice get members\" and \"sluice get hosts\" show what the host reports")
	}
	return nil
}

// starting returns a member of the gateway that is on its way up already.
func (f *Fleet) starting(gatewayUID string) *member {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.members[gatewayUID] {
		if !m.draining && m.condemned == "" && m.State != core.MemberLeaving {
			return m
		}
	}
	return nil
}

func (f *Fleet) wakePhases(start time.Time, m *member) []core.Phase {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []core.Phase
	add := func(name string, from, to time.Time) {
		if !from.IsZero() && !to.Before(from) {
			out = append(out, core.Phase{Name: name, Duration: to.Sub(from)})
		}
	}
	if !m.leasedAt.IsZero() {
		add(core.PhaseLeased, start, m.leasedAt)
		add(core.PhaseInjected, m.leasedAt, m.injectedAt)
		add(core.PhaseDialledBack, m.injectedAt, m.ReadyAt)
		return out
	}
	add(core.PhaseDialledBack, start, m.since) // it was on its way when this process started
	return out
}

// problems tells what a host says it could not do, for the end of a message.
func (f *Fleet) problems(host string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.hosts[host]
	if s == nil {
		return "; host " + host + " is not connected"
	}
	if len(s.info.Problems) == 0 {
		return ""
	}
	return "; host " + host + " reports: " + strings.Join(s.info.Problems, "; ")
}

// Pause drains the gateway's members, takes them out of the goal states, and waits
// until their teardown is confirmed. A query that comes meanwhile wakes the gateway
// again afterwards.
func (f *Fleet) Pause(ctx context.Context, gw GatewayRef, reason string) error {
	mine, end, err := f.beginPause(ctx, gw)
	if err != nil {
		return err
	}
	defer end()
	drainCtx, cancel := context.WithTimeout(ctx, f.opts.DrainTimeout)
	defer cancel()
	err = f.wait(drainCtx, func() bool {
		for _, m := range mine {
			if m.inflight > 0 {
				return false
			}
		}
		return true
	})
	if err != nil && ctx.Err() != nil {
		f.undrain(mine)
		return errs.New(errs.As(ctx.Err()).Class, "gateway %s still has queries in flight: %w", gw.Name, ctx.Err())
	}
	for _, m := range mine {
		if err := f.remove(ctx, m, reason); err != nil {
			f.undrain(mine) // nothing of the pause was stored: the gateway goes on
			return err
		}
	}
	return f.waitGone(ctx, gw, mine)
}

func (f *Fleet) waitGone(ctx context.Context, gw GatewayRef, mine []*member) error {
	err := f.wait(ctx, func() bool {
		for _, m := range mine {
			if m.State != core.MemberGone {
				return false
			}
		}
		return true
	})
	if err == nil || ctx.Err() == nil {
		return err
	}
	return errs.New(errs.As(ctx.Err()).Class, "the teardown of gateway %s's members is not confirmed by their host", gw.Name).
		WithHint("\"sluice get hosts\" shows whether it is connected; the addresses stay leased until it confirms")
}

// beginPause waits for another pause of the gateway to end, then drains its members.
// Until end is called, queries wait and nothing is placed.
func (f *Fleet) beginPause(ctx context.Context, gw GatewayRef) (mine []*member, end func(), err error) {
	paused := make(chan struct{})
	err = f.wait(ctx, func() bool {
		if f.pausing[gw.UID] != nil {
			return false
		}
		f.pausing[gw.UID] = paused
		for _, m := range f.members[gw.UID] {
			m.draining = true
			mine = append(mine, m)
		}
		return true
	})
	if err != nil {
		return nil, nil, errs.New(errs.As(err).Class, "gateway %s is being paused already: %w", gw.Name, err)
	}
	return mine, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.pausing, gw.UID)
		close(paused)
		f.broadcast()
	}, nil
}

func (f *Fleet) undrain(members []*member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range members {
		if m.State != core.MemberLeaving && m.State != core.MemberGone {
			m.draining, m.condemned = false, ""
		}
	}
	f.broadcast()
}

// Abandon takes a gateway's members out of the goal states without waiting.
func (f *Fleet) Abandon(gateway string, t core.TenantID, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.live {
		if m.Tenant == t && m.Gateway == gateway && m.State != core.MemberLeaving && m.condemned == "" {
			f.condemn(m, reason)
		}
	}
}
