package fleet

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/placement"
	"github.com/sluice-gateway/sluice/internal/store"
)

// waits reports whether a member was placed without an address, which its host leases by
// DHCP. The caller holds mu.
func (m *member) waits() bool {
	return !m.Address.IsValid() && m.State == core.MemberPlaced && m.condemned == ""
}

// adoptAll adopts what hosts have obtained for members that wait. It is tried again, since an
// address may be held until the teardown of the member before is confirmed.
func (f *Fleet) adoptAll(ctx context.Context) {
	obtained := map[*member]netip.Addr{}
	f.mu.Lock()
	for m := range f.unsettled {
		if m.waits() && m.obtained.IsValid() {
			obtained[m] = m.obtained
		}
	}
	f.mu.Unlock()
	for m, a := range obtained {
		f.adopt(ctx, m, a)
	}
}

// leasedElsewhere says that a member's address is its host's by DHCP.
func leasedElsewhere(tx store.Tx, m core.Member) bool {
	vnet, err := tx.GetResource(m.Tenant, core.KindVirtualNetwork, m.VNet)
	return err == nil && vnet.UID == m.VNetUID && vnet.Spec.(*core.VirtualNetwork).LeasedElsewhere(m.Subnet)
}

// adopt leases the address that a host has obtained for a member, and puts it into the
// goal state: before that nothing on the host uses it. An address that another member has,
// or that rests, is refused by the store.
func (f *Fleet) adopt(ctx context.Context, m *member, a netip.Addr) {
	everyone, err := f.storeAddress(ctx, m, a)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil:
		m.leasedAt = f.opts.Now()
		f.log.Info("member has an address by DHCP", "member", m.ID, "gateway", m.Gateway, "host", m.Host, "address", a)
		f.pushFor(m.Host, everyone)
	case ctx.Err() != nil || !m.waits():
	case errs.ClassOf(err) == errs.Invalid:
		f.condemn(m, err.Error())
	case m.Reason != err.Error():
		m.Reason = err.Error()
		f.log.Warn("an address by DHCP can't be leased yet", "member", m.ID, "address", a, "error", err)
	}
	f.broadcast()
}

func (f *Fleet) storeAddress(ctx context.Context, m *member, a netip.Addr) (everyone bool, err error) {
	taken := false
	err = f.change(ctx, func(tx store.Tx, s *spaces) error {
		row, err := tx.GetMember(m.ID)
		if err != nil {
			return err
		}
		if row.State != core.MemberPlaced || row.Address.IsValid() {
			return errs.New(errs.Conflict, "member %s is %s already", m.ID, row.State)
		}
		of, err := f.spaceFor(tx, s, row, a)
		if err != nil {
			return err
		}
		row.Address = a
		lease, now := f.newLease(row), f.opts.Now()
		lease.AcquiredAt, lease.RenewedAt, lease.ExpiresAt = now, now, now.Add(f.opts.LeaseTime)
		if err := tx.AcquireLease(lease, now); err != nil {
			return err
		}
		if _, err := tx.NextGoalVersion(row.Host); err != nil {
			return err
		}
		if err := tx.PutMember(row); err != nil {
			return err
		}
		if everyone, err = f.tellNetworks(tx, row); err != nil {
			return err
		}
		s.take(row, of)
		f.mu.Lock()
		defer f.mu.Unlock()
		m.Address, m.expires, taken = a, lease.ExpiresAt, true // within the transaction: rows that are written later have it
		return nil
	})
	if err != nil && taken {
		f.mu.Lock()
		defer f.mu.Unlock()
		m.Address = netip.Addr{}
	}
	return everyone, err
}

// spaceFor finds the addresses of a member's subnet, in which a must be one that members
// can have.
func (f *Fleet) spaceFor(tx store.Tx, s *spaces, m core.Member, a netip.Addr) (*space, error) {
	vnet, err := tx.GetResource(m.Tenant, core.KindVirtualNetwork, m.VNet)
	if err != nil {
		return nil, err
	}
	for _, sub := range vnet.Spec.(*core.VirtualNetwork).Subnets {
		if sub.Name == m.Subnet && vnet.UID == m.VNetUID {
			if !placement.Usable(sub.Prefix, a) {
				return nil, errs.New(errs.Invalid, "host %s has leased %s by DHCP, which is no address for members of subnet %s (%s)", m.Host, a, sub.Name, sub.Prefix)
			}
			return s.subnet(tx, vnet, sub.Prefix, f.opts.Now().Add(f.opts.Quarantine))
		}
	}
	return nil, errs.New(errs.Invalid, "VirtualNetwork/%s has no subnet %s any more", m.VNet, m.Subnet)
}

// placedWhere says where a new member is.
func placedWhere(m core.Member) string {
	if m.Address.IsValid() {
		return fmt.Sprintf("on host %s with address %s", m.Host, m.Address)
	}
	return fmt.Sprintf("on host %s, which leases an address by DHCP", m.Host)
}
