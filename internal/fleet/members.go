package fleet

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/ident"
	"github.com/sluice-gateway/sluice/internal/store"
)

// place puts a new member into the store and tells its host.
func (f *Fleet) place(ctx context.Context, gw GatewayRef) (*member, error) {
	m, everyone, err := f.storeNew(ctx, gw)
	if errs.ClassOf(err) == errs.Conflict { // the index of addresses was not the store's
		m, everyone, err = f.storeNew(ctx, gw)
	}
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	m.leasedAt = f.opts.Now()
	f.log.Info("member placed", "member", m.ID, "gateway", m.Gateway, "host", m.Host, "address", m.Address, "generation", m.Generation)
	f.pushFor(m.Host, everyone)
	f.broadcast()
	return m, nil
}

// storeNew chooses host and addresses for a new member, leases, and writes the goal
// state's next version, all in one transaction. The member is known before the end of
// that: its host may be sent the goal state, and the member dial back, at once.
func (f *Fleet) storeNew(ctx context.Context, gw GatewayRef) (m *member, everyone bool, err error) {
	err = f.change(ctx, func(tx store.Tx, s *spaces) error {
		row, err := f.plan(tx, s, gw)
		if err != nil {
			return err
		}
		if err = tx.PutMember(row); err != nil {
			return err
		}
		if everyone, err = f.tellNetworks(tx, row); err != nil {
			return err
		}
		lease := f.newLease(row)
		if row.Address.IsValid() {
			if err = tx.AcquireLease(lease, row.CreatedAt); err != nil {
				return err
			}
		}
		m = &member{Member: row, since: row.CreatedAt, leasedAt: row.CreatedAt, expires: lease.ExpiresAt}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.enlist(m)
		return nil
	})
	if m == nil {
		return nil, false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.discharge(m)
	} else {
		f.settle(m, placedWhere(m.Member))
	}
	return m, everyone, err
}

// plan decides about a new member from what the transaction sees.
func (f *Fleet) plan(tx store.Tx, s *spaces, gw GatewayRef) (core.Member, error) {
	none := core.Member{}
	stored, err := tx.GetResource(gw.Tenant, core.KindGateway, gw.Name)
	if err != nil {
		return none, err
	}
	if stored.UID != gw.UID {
		return none, errs.New(errs.Conflict, "gateway %s was deleted and made again", gw.Name).WithHint("try again")
	}
	spec := stored.Spec.(*core.Gateway)
	vnet, err := tx.GetResource(gw.Tenant, core.KindVirtualNetwork, spec.VNet)
	if err != nil {
		return none, err
	}
	host, tunnel, err := f.chooseHost(s, gw, vnet.Spec.(*core.VirtualNetwork), spec.Subnet)
	if err != nil {
		return none, err
	}
	address, of, err := f.chooseAddress(tx, s, vnet, spec)
	if err != nil {
		return none, err
	}
	version, err := tx.NextGoalVersion(host)
	if err != nil {
		return none, err
	}
	m := core.Member{
		ID: ident.New("m"), Tenant: gw.Tenant, Generation: version,
		Gateway: gw.Name, GatewayUID: gw.UID, VNet: spec.VNet, VNetUID: vnet.UID, Subnet: spec.Subnet,
		Host: host, Address: address, TunnelAddress: tunnel,
		State: core.MemberPlaced, Size: spec.Size, CreatedAt: f.opts.Now(),
	}
	s.take(m, of)
	return m, nil
}

// remove takes a member out of its host's goal state. The lease stays until the
// host confirms the teardown.
func (f *Fleet) remove(ctx context.Context, m *member, reason string) error {
	f.mu.Lock()
	row := m.Member
	if row.State == core.MemberLeaving || row.State == core.MemberGone {
		f.mu.Unlock()
		return nil
	}
	m.condemned = reason
	f.settle(m, reason)
	f.broadcast()
	f.mu.Unlock()

	row.State, row.Reason = core.MemberLeaving, reason
	var version int64
	var everyone, over bool
	err := f.opts.Store.Write(ctx, func(tx store.Tx) (err error) {
		if have, err := tx.GetMember(row.ID); err == nil {
			row.Address = have.Address // it may have been adopted a moment ago
			if over = have.State == core.MemberGone; over {
				return nil // somebody else has removed it, and its host was quick
			}
		}
		if version, err = tx.NextGoalVersion(row.Host); err != nil {
			return err
		}
		if err = tx.PutMember(row); err != nil {
			return err
		}
		everyone, err = f.tellNetworks(tx, row)
		return err
	})
	if err != nil || over {
		return err // keep() tries again: the member stays condemned
	}
	f.mu.Lock()
	m.State, m.Reason, m.leavingVersion = core.MemberLeaving, reason, version
	f.leaving[m] = true
	f.settle(m, reason)
	f.pushFor(m.Host, everyone)
	f.broadcast()
	f.mu.Unlock()
	f.log.Info("member leaving", "member", m.ID, "gateway", m.Gateway, "reason", reason)
	f.opts.Disconnect(m.ID, m.Generation)
	return nil
}

// end says how a member's teardown came to count as done.
type end struct {
	reason    string                                // for the lease
	confirmed bool                                  // by the host; else it counts as done on somebody's word
	record    func(tx store.Tx, l core.Lease) error // nil: nothing more is to be written
}

// confirmGone ends a member of which nothing exists any more: the lease goes into
// quarantine. An address by DHCP does not rest once its host has given it back: from then
// on its server may give it to anybody.
func (f *Fleet) confirmGone(ctx context.Context, m *member, how end) error {
	f.mu.Lock()
	row := m.Member
	f.mu.Unlock()
	if row.State == core.MemberGone {
		return nil
	}
	row.State = core.MemberGone
	reusableAt := f.opts.Now().Add(f.opts.Quarantine)
	lease := f.newLease(row)
	err := f.change(ctx, func(tx store.Tx, s *spaces) error {
		if have, err := tx.GetMember(row.ID); err == nil && have.State == core.MemberGone {
			return nil // confirmed twice at once
		}
		if how.confirmed && leasedElsewhere(tx, row) {
			reusableAt = f.opts.Now()
		}
		if err := tx.PutMember(row); err != nil {
			return err
		}
		if err := tx.QuarantineLease(lease, reusableAt, how.reason); err != nil {
			return err
		}
		s.ended(row, reusableAt)
		if how.record == nil || !row.Address.IsValid() {
			return nil
		}
		return how.record(tx, lease)
	})
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	m.State = core.MemberGone
	f.discharge(m)
	f.settle(m, how.reason)
	f.log.Info("member gone", "member", m.ID, "gateway", m.Gateway, "address", m.Address, "reason", how.reason)
	f.broadcast()
	return nil
}

// keep looks after what no event announces: members that do not dial back, writes
// that failed, leases that nobody renews, rows that have served their time.
func (f *Fleet) keep() {
	defer f.wg.Done()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var purged time.Time
	for {
		select {
		case <-f.done.Done():
			return
		case <-tick.C:
			f.renew(f.done)
		case <-f.urgent:
		}
		f.save()
		f.adoptAll(f.done)
		for m, reason := range f.overdue() {
			if err := f.remove(f.done, m, reason); err != nil {
				f.log.Warn("a member could not be removed, will try again", "member", m.ID, "error", err)
			}
		}
		f.relieve()
		f.steer()
		f.saveUsed(false)
		if now := f.opts.Now(); now.Sub(purged) > time.Minute {
			purged = now
			f.purge(now)
			f.sweep()
		}
	}
}

// overdue returns the members that must go, each with the reason.
func (f *Fleet) overdue() map[*member]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[*member]string{}
	for m := range f.unsettled {
		switch {
		case m.condemned != "":
			out[m] = m.condemned
		case m.retiring != "" && m.inflight == 0:
			out[m] = m.retiring
		case m.retiring != "" && f.opts.Now().Sub(m.retiredAt) > f.opts.RetireTimeout:
			out[m] = fmt.Sprintf("%s; its queries did not end within %s", m.retiring, f.opts.RetireTimeout)
		case !m.connected && f.opts.Now().Sub(m.since) > f.opts.WakeTimeout:
			reason := "it did not dial back within " + f.opts.WakeTimeout.String()
			if m.Reason != "" {
				reason += " (" + m.Reason + ")"
			}
			out[m] = reason
			f.lose(m, reason)
		}
	}
	return out
}

// save writes the states that changed since it last ran, and the history. They are for
// people: correctness rests on leaving and gone, which are written at once.
func (f *Fleet) save() {
	f.saving.Lock()
	defer f.saving.Unlock()
	f.mu.Lock()
	var rows []core.Member
	for id := range f.dirty {
		if m := f.live[id]; m != nil && m.State != core.MemberLeaving {
			rows = append(rows, m.Member)
		}
	}
	clear(f.dirty)
	history := f.unsaved
	f.unsaved = nil
	f.mu.Unlock()
	if len(rows)+len(history) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := f.opts.Store.Write(ctx, func(tx store.Tx) error {
		for _, row := range rows {
			if !f.current(row) {
				continue
			}
			if err := tx.PutMember(row); err != nil {
				return err
			}
		}
		return tx.AppendTransitions(history)
	})
	if err != nil {
		f.log.Warn("states could not be stored", "error", err)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.unsaved = append(history, f.unsaved...)
		for _, row := range rows {
			f.dirty[row.ID] = true
		}
	}
}

// current reports whether a row to be written late still says what memory says: a
// member that began to leave meanwhile must not come back.
func (f *Fleet) current(row core.Member) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.live[row.ID]
	return m != nil && m.State == row.State && m.Address == row.Address && m.condemned == ""
}

// sweep condemns members whose gateway does not exist any more: a wake may have placed
// one while its gateway was being deleted.
func (f *Fleet) sweep() {
	gateways := map[string]bool{}
	f.mu.Lock()
	before := maps.Clone(f.live)
	f.mu.Unlock()
	err := f.opts.Store.Read(f.done, func(tx store.Tx) error {
		return eachGateway(tx, func(ref GatewayRef, _ *core.Gateway) { gateways[ref.UID] = true })
	})
	if err != nil {
		return // the next minute tries again
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range before {
		if !gateways[m.GatewayUID] && m.condemned == "" && m.State != core.MemberLeaving && m.State != core.MemberGone {
			f.condemn(m, "its gateway does not exist any more")
		}
	}
	for uid := range f.lives {
		if !gateways[uid] && len(f.members[uid]) == 0 && f.wakes[uid] == nil {
			delete(f.lives, uid)
		}
	}
	f.broadcast()
}

// keepHistory is for how long changes of state are kept.
const keepHistory = 30 * 24 * time.Hour

func (f *Fleet) purge(now time.Time) {
	err := f.opts.Store.Write(f.done, func(tx store.Tx) error {
		if err := tx.PurgeLeases(now); err != nil {
			return err
		}
		if err := tx.PurgeTransitions(now.Add(-keepHistory)); err != nil {
			return err
		}
		return tx.PurgeMembers(now.Add(-24 * time.Hour)) // a host hears of an end long before, or is told everything
	})
	if err != nil && f.done.Err() == nil {
		f.log.Warn("old rows could not be purged", "error", err)
	}
}
