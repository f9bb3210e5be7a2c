package fleet

import (
	"context"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// Pause drains the gateway's members, takes them out of the goal states, and waits
// until their teardown is confirmed. A query that comes meanwhile wakes the gateway
// again afterwards.
func (f *Fleet) Pause(ctx context.Context, gw GatewayRef, reason string) error {
	mine, end, err := f.beginPause(ctx, gw, reason)
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
	return f.tearDown(ctx, gw, mine, reason)
}

// tearDown takes members that drain out of the goal states, and waits until their teardown
// is confirmed.
func (f *Fleet) tearDown(ctx context.Context, gw GatewayRef, mine []*member, reason string) error {
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
func (f *Fleet) beginPause(ctx context.Context, gw GatewayRef, reason string) (mine []*member, end func(), err error) {
	err = f.wait(ctx, func() bool {
		if f.pausing[gw.UID] != nil {
			return false
		}
		mine, end = f.drainAll(f.life(gw), reason, true)
		return true
	})
	if err != nil {
		return nil, nil, errs.New(errs.As(err).Class, "gateway %s is being paused already: %w", gw.Name, err)
	}
	return mine, end, nil
}

// drainAll begins a pause. Until end is called, queries wait and nothing is placed. The
// caller holds mu.
func (f *Fleet) drainAll(l *life, reason string, hold bool) (mine []*member, end func()) {
	uid := l.ref.UID
	paused := make(chan struct{})
	f.pausing[uid] = paused
	l.paused(hold)
	l.cause = reason
	for _, m := range f.members[uid] {
		m.draining = true
		mine = append(mine, m)
		f.settle(m, reason)
	}
	f.settleGateway(l)
	return mine, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.pausing, uid)
		f.settleGateway(l)
		close(paused)
		f.broadcast()
	}
}

func (f *Fleet) undrain(members []*member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range members {
		if m.State != core.MemberLeaving && m.State != core.MemberGone {
			m.draining, m.condemned = m.retiring != "", ""
			f.lifeOf(m).woken(f.opts.Now())
			f.settle(m, "the pause was given up")
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
