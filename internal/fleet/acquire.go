package fleet

import (
	"context"
	"sync"

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
	return Grant{}, f.wakeFor(gw, "a query needs it")
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
