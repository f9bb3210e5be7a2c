package fleet

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

// newLease is the lease with which a member begins.
func (f *Fleet) newLease(m core.Member) core.Lease {
	return core.Lease{
		Tenant: m.Tenant, VNet: m.VNet, VNetUID: m.VNetUID, Subnet: m.Subnet, Address: m.Address,
		Member: m.ID, Generation: m.Generation, Gateway: m.Gateway, Host: m.Host, State: core.LeaseHeld,
		AcquiredAt: m.CreatedAt, RenewedAt: m.CreatedAt, ExpiresAt: m.CreatedAt.Add(f.opts.LeaseTime),
	}
}

// expiries reads when held leases expire, by member and generation.
func expiries(tx store.Tx) (map[string]time.Time, error) {
	leases, err := tx.ListLeases("")
	out := map[string]time.Time{}
	for _, l := range leases {
		if !l.Ended() {
			out[key(l.Member, l.Generation)] = l.ExpiresAt
		}
	}
	return out, err
}

// renewAtOnce bounds how many leases are renewed in one transaction, beyond a twentieth of all:
// wakes wait for it. What is left is renewed a second later, long before it expires.
const renewAtOnce = 100

// renew writes down what hosts have confirmed, once half of a lease's time has passed:
// a host reports every few seconds.
func (f *Fleet) renew(ctx context.Context) {
	f.mu.Lock()
	due, rows := map[*member]time.Time{}, map[*member]core.Member{}
	now := f.opts.Now()
	most := renewAtOnce + len(f.live)/20
	for _, m := range f.live {
		if !m.Address.IsValid() {
			continue // there is no lease yet
		}
		// What is stored may also be of a clock that was set back since: hours too late.
		if at := f.confirmed(m); !at.IsZero() && len(due) < most && at.Add(f.opts.LeaseTime).Sub(m.expires).Abs() > f.opts.LeaseTime/2 {
			due[m], rows[m] = at, m.Member
		}
		expired := now.After(f.expiry(m))
		m.expiryTold = m.expiryTold && expired
		if expired && !m.expiryTold {
			m.expiryTold = true
			f.log.Warn("a lease has expired: its host is silent, and the address stays leased", "member", m.ID, "address", m.Address, "host", m.Host)
		}
	}
	f.mu.Unlock()
	if len(due) == 0 {
		return
	}
	err := f.opts.Store.Write(ctx, func(tx store.Tx) error {
		for m, at := range due {
			if err := tx.RenewLease(f.newLease(rows[m]), at, at.Add(f.opts.LeaseTime)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		if ctx.Err() == nil {
			f.log.Warn("leases could not be renewed, will try again", "error", err)
		}
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for m, at := range due {
		m.expires = at.Add(f.opts.LeaseTime)
	}
}

// expiry is until when a member's host has confirmed it. The caller holds mu.
func (f *Fleet) expiry(m *member) time.Time {
	if confirmed := f.confirmed(m).Add(f.opts.LeaseTime); confirmed.After(m.expires) {
		return confirmed
	}
	return m.expires
}

// Leases returns the leases of a tenant, each with why it stands as it does. One that has
// rested for long enough is none.
func (f *Fleet) Leases(ctx context.Context, t core.TenantID) ([]core.Lease, error) {
	var rows []core.Lease
	err := f.opts.Store.Read(ctx, func(tx store.Tx) (err error) {
		rows, err = tx.ListLeases(t)
		return err
	})
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.explain(rows), nil
}

// Explain does the same for leases that a transaction of the caller's has read.
func (f *Fleet) Explain(rows []core.Lease) []core.Lease {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.explain(rows)
}

func (f *Fleet) explain(rows []core.Lease) []core.Lease {
	out := rows[:0]
	for _, l := range rows {
		if !l.Ended() || f.opts.Now().Before(l.ReusableAt) {
			out = append(out, f.explained(l))
		}
	}
	return out
}

// explained completes a lease with what memory knows of it. The caller holds mu.
func (f *Fleet) explained(l core.Lease) core.Lease {
	if l.Ended() {
		l.Reason = fmt.Sprintf("%s; the address may be used again at %s", l.Reason, clock(l.ReusableAt))
		return l
	}
	m := f.live[l.Member]
	known := m != nil && m.Generation == l.Generation
	if known {
		l.ExpiresAt = f.expiry(m)
		if at := f.confirmed(m); at.After(l.RenewedAt) {
			l.RenewedAt = at
		}
	}
	if f.opts.Now().After(l.ExpiresAt) {
		l.State = core.LeaseExpired
		l.Reason = fmt.Sprintf("host %s has confirmed nothing of it since %s; the address stays leased until the host confirms the teardown, or an administrator releases it",
			l.Host, clock(l.RenewedAt))
		return l
	}
	switch {
	case !known:
		l.Reason = "the member is not known any more"
	case m.State == core.MemberLeaving || m.condemned != "":
		why := m.condemned
		if why == "" {
			why = m.Reason
		}
		l.Reason = fmt.Sprintf("the member leaves (%s); host %s has not confirmed its teardown yet", why, l.Host)
	case f.confirmed(m).IsZero():
		l.Reason = fmt.Sprintf("host %s has not confirmed it yet", l.Host)
	default:
		l.Reason = fmt.Sprintf("host %s has the member", l.Host)
	}
	return l
}

func clock(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Stale says why a lease can't be released by force, or nil: only of a host that is not
// connected can an administrator know more than the host says.
func (f *Fleet) Stale(l core.Lease) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l.Ended() || f.hosts[l.Host] == nil {
		return nil
	}
	return errs.New(errs.Conflict, "%s is held by member %s on host %s, which is connected", l.Address, l.Member, l.Host).
		WithHint("pause gateway %s: the host then confirms the teardown; if it can't, \"sluice get hosts\" shows why", l.Gateway)
}

// Release ends a lease on the administrator's word alone, for the reason given: one that
// is held begins its quarantine, one in quarantine ends it. record is called in the
// transaction.
func (f *Fleet) Release(ctx context.Context, l core.Lease, reason string, record func(store.Tx, core.Lease) error) error {
	if err := f.Stale(l); err != nil {
		return err
	}
	f.mu.Lock()
	m := f.live[l.Member]
	f.mu.Unlock()
	if !l.Ended() && m != nil && m.Generation == l.Generation {
		return f.writeOff(ctx, m, "its lease was released by force", end{reason: reason, record: record})
	}
	reusableAt := f.opts.Now()
	if !l.Ended() {
		reusableAt = reusableAt.Add(f.opts.Quarantine)
	}
	return f.change(ctx, func(tx store.Tx, _ *spaces) error {
		if err := tx.QuarantineLease(l, reusableAt, reason); err != nil {
			return err
		}
		f.spaces = nil // read again: this is rare
		return record(tx, l)
	})
}

// writeOff ends a member whose host will not confirm it.
func (f *Fleet) writeOff(ctx context.Context, m *member, reason string, how end) error {
	if err := f.remove(ctx, m, reason); err != nil {
		return err
	}
	return f.confirmGone(ctx, m, how)
}
