package sqlite

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

const leaseColumns = `tenant, vnet_uid, address, vnet, subnet, member, generation, gateway, host, state,
	acquired_at, renewed_at, expires_at, reusable_at, reason`

func scanLease(row scanner) (core.Lease, error) {
	var l core.Lease
	err := row.Scan(&l.Tenant, &l.VNetUID, addrColumn{&l.Address}, &l.VNet, &l.Subnet, &l.Member, &l.Generation, &l.Gateway, &l.Host, &l.State,
		timeColumn{&l.AcquiredAt}, timeColumn{&l.RenewedAt}, timeColumn{&l.ExpiresAt}, timeColumn{&l.ReusableAt}, &l.Reason)
	return l, err
}

// AcquireLease implements store.Leases. The key of the table is what lets one win.
func (t *tx) AcquireLease(l core.Lease, now time.Time) error {
	doing := fmt.Sprintf("lease %s of VirtualNetwork/%s", l.Address, l.VNet)
	if _, err := t.exec(doing, `DELETE FROM leases
		WHERE tenant = ? AND vnet_uid = ? AND address = ? AND state = 'quarantined' AND reusable_at <= ?`,
		l.Tenant, l.VNetUID, address(l.Address), nanos(now)); err != nil {
		return err
	}
	_, err := t.exec(doing, "INSERT INTO leases ("+leaseColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'held', ?, ?, ?, 0, '')",
		l.Tenant, l.VNetUID, address(l.Address), l.VNet, l.Subnet, l.Member, l.Generation, l.Gateway, l.Host,
		nanos(l.AcquiredAt), nanos(l.RenewedAt), nanos(l.ExpiresAt))
	if isUnique(err) {
		return t.leaseConflict(l)
	}
	return err
}

func (t *tx) leaseConflict(l core.Lease) error {
	h, err := one(t, "lease", "SELECT "+leaseColumns+" FROM leases WHERE tenant = ? AND vnet_uid = ? AND address = ?",
		[]any{l.Tenant, l.VNetUID, address(l.Address)}, scanLease)
	if err != nil {
		return err
	}
	state := "is held by"
	if h.State == core.LeaseQuarantined {
		state = fmt.Sprintf("is quarantined until %s after", h.ReusableAt.Format(time.RFC3339))
	}
	return errs.New(errs.Conflict, "member %s (generation %d) can't lease %s of VirtualNetwork/%s: it %s member %s (generation %d)",
		l.Member, l.Generation, l.Address, l.VNet, state, h.Member, h.Generation)
}

// ofHolder picks the row of a lease, if it is still its holder's.
const ofHolder = "tenant = ? AND vnet_uid = ? AND address = ? AND member = ? AND generation = ?"

func (t *tx) RenewLease(l core.Lease, renewedAt, expiresAt time.Time) error {
	_, err := t.exec(fmt.Sprintf("renew the lease of %s", l.Address), "UPDATE leases SET renewed_at = ?, expires_at = ? WHERE state = 'held' AND "+ofHolder,
		nanos(renewedAt), nanos(expiresAt), l.Tenant, l.VNetUID, address(l.Address), l.Member, l.Generation)
	return err
}

// QuarantineLease implements store.Leases.
func (t *tx) QuarantineLease(l core.Lease, reusableAt time.Time, reason string) error {
	_, err := t.exec(fmt.Sprintf("quarantine %s", l.Address),
		"UPDATE leases SET state = 'quarantined', reusable_at = ?, reason = ? WHERE (state = 'held' OR reusable_at > ?) AND "+ofHolder,
		nanos(reusableAt), reason, nanos(reusableAt), l.Tenant, l.VNetUID, address(l.Address), l.Member, l.Generation)
	return err
}

// ListLeases implements store.Leases, by tenant, network and address.
func (t *tx) ListLeases(tenant core.TenantID) ([]core.Lease, error) {
	out, err := list(t, "list leases", "SELECT "+leaseColumns+" FROM leases WHERE ?1 = '' OR tenant = ?1", []any{tenant}, scanLease)
	slices.SortFunc(out, func(a, b core.Lease) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.VNet, b.VNet), cmp.Compare(a.VNetUID, b.VNetUID), a.Address.Compare(b.Address))
	})
	return out, err
}

func (t *tx) PurgeLeases(now time.Time) error {
	_, err := t.exec("purge leases", "DELETE FROM leases WHERE state = 'quarantined' AND reusable_at <= ?", nanos(now))
	return err
}
