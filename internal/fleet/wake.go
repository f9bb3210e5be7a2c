package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// wake is one injection that any number of queries wait for.
type wake struct {
	begun time.Time
	done  chan struct{}
	err   error
}

// Wake brings a gateway up, for the reason given, and waits until a member is ready.
func (f *Fleet) Wake(ctx context.Context, gw GatewayRef, reason string) error {
	for {
		w := f.wakeUnlessReady(gw, reason)
		if w == nil {
			return nil
		}
		select {
		case <-w.done:
			if w.err != nil {
				return w.err
			}
		case <-ctx.Done():
			return notAwake(ctx, gw)
		case <-f.done.Done():
			return errs.New(errs.Unavailable, "the service is stopping").WithStep(errs.StepWake)
		}
	}
}

func notAwake(ctx context.Context, gw GatewayRef) error {
	e := errs.As(context.Cause(ctx))
	return errs.New(e.Class, "gateway %s was not awake in time: %w", gw.Name, e).WithStep(errs.StepWake)
}

// wakeUnlessReady returns what to wait for until the gateway has a member that is ready, or
// nil if it has one.
func (f *Fleet) wakeUnlessReady(gw GatewayRef, reason string) *wake {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.done.Err() != nil {
		return &wake{} // nothing is begun any more
	}
	if paused := f.pausing[gw.UID]; paused != nil {
		return &wake{done: paused}
	}
	if f.facts(f.life(gw)).Ready > 0 {
		return nil
	}
	return f.wakeFor(gw, reason)
}

// wakeFor returns the wake of a gateway that is under way, or begins one for the reason
// given. The caller holds mu.
func (f *Fleet) wakeFor(gw GatewayRef, reason string) *wake {
	w := f.wakes[gw.UID]
	if w != nil {
		return w
	}
	w = &wake{begun: f.opts.Now(), done: make(chan struct{})}
	f.wakes[gw.UID] = w
	l := f.life(gw)
	l.woken(f.opts.Now())
	l.cause = reason
	f.settleGateway(l)
	f.wg.Add(1)
	go f.runWake(gw, w)
	return w
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

// runWake brings one member of the gateway up, or says why not.
func (f *Fleet) runWake(gw GatewayRef, w *wake) {
	defer f.wg.Done()
	w.err = f.wakeUp(gw)
	if w.err != nil {
		f.log.Warn("wake failed", "gateway", gw.Name, "error", w.err)
	}
	f.mu.Lock()
	delete(f.wakes, gw.UID)
	l := f.life(gw)
	if w.err != nil && f.usable(gw.UID) == 0 {
		l.failed, l.awake, l.cause = true, false, w.err.Error()
	}
	f.settleGateway(l)
	if g := f.gateOf(gw); w.err != nil && f.usable(gw.UID) == 0 {
		f.failAll(g, w.err)
	} else {
		f.dispatch(g)
	}
	f.mu.Unlock()
	close(w.done)
}

// wakeUp waits for a member that is on its way already; if there is none, or it does
// not arrive, it places one.
func (f *Fleet) wakeUp(gw GatewayRef) error {
	if m := f.starting(gw.UID); m != nil {
		if err := f.waitReady(gw, m); err == nil || f.done.Err() != nil {
			return err
		}
		f.waitPaused(gw.UID, m) // nothing is placed while the gateway is paused
	}
	for {
		m, err := f.place(f.done, gw)
		if err != nil {
			e := *errs.As(err)
			e.Message = fmt.Sprintf("wake gateway %s: %s", gw.Name, e.Message)
			e.Step = errs.StepWake
			return &e
		}
		err = f.waitReady(gw, m)
		if err == nil || !f.waitPaused(gw.UID, m) {
			return err
		}
		if !f.wanted(gw) { // it was up, and has served those who waited, before the pause
			return nil
		}
	}
}

// wanted reports whether somebody waits for the gateway.
func (f *Fleet) wanted(gw GatewayRef) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gateOf(gw).waits()
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

// wakePhases are the parts of a wake that ended with a member. The caller holds mu.
func wakePhases(start time.Time, m *member) []core.Phase {
	var out []core.Phase
	add := func(name string, from, to time.Time) {
		if !from.IsZero() && !to.Before(from) {
			out = append(out, core.Phase{Name: name, Duration: to.Sub(from)})
		}
	}
	if m.leasedAt.IsZero() || m.leasedAt.Before(start) {
		add(core.PhaseDialledBack, start, m.since) // it was on its way before
		return out
	}
	add(core.PhaseLeased, start, m.leasedAt)
	add(core.PhaseInjected, m.leasedAt, m.injectedAt)
	add(core.PhaseDialledBack, m.injectedAt, m.ReadyAt)
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
