package storetest

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

func lease(member string, generation int64) core.Lease {
	return core.Lease{
		Tenant: tenant, VNet: "v", VNetUID: "uv", Subnet: "s", Address: addr(4),
		Member: member, Generation: generation, Gateway: "g", Host: "h1", State: core.LeaseHeld,
		AcquiredAt: now(), RenewedAt: now(), ExpiresAt: now().Add(time.Minute),
	}
}

func acquire(l core.Lease, at time.Time) func(store.Tx) error {
	return func(tx store.Tx) error { return tx.AcquireLease(l, at) }
}

func quarantine(member string, generation int64, until time.Time) func(store.Tx) error {
	return func(tx store.Tx) error {
		return tx.QuarantineLease(lease(member, generation), until, "confirmed")
	}
}

// leasesAre compares all leases of the store.
func (h *harness) leasesAre(want ...core.Lease) {
	h.Helper()
	h.read(func(tx store.Tx) error {
		got, err := tx.ListLeases("")
		h.same(want, got)
		return err
	})
}

func leases() map[string]func(h *harness) {
	until := now().Add(time.Minute)
	return map[string]func(h *harness){
		"an address has one holder": func(h *harness) {
			h.write(acquire(lease("m-1", 1), now()))
			h.refused(errs.Conflict, acquire(lease("m-2", 7), now()), "m-1", "m-2", "10.20.0.4", "VirtualNetwork/v")
			h.refused(errs.Conflict, acquire(lease("m-1", 1), now().Add(time.Hour)))
			h.refused(errs.Conflict, acquire(lease("m-1", 2), now()))
			mapped := lease("m-2", 1)
			mapped.Address = netip.MustParseAddr("::ffff:10.20.0.4") // the same address in other words
			h.refused(errs.Conflict, acquire(mapped, now()))
			h.leasesAre(lease("m-1", 1))
		},
		"networks and tenants lease apart": func(h *harness) {
			vnet, other := lease("m-2", 1), lease("m-3", 1)
			vnet.VNetUID, other.Tenant = "uv2", "t2"
			h.write(acquire(lease("m-1", 1), now()))
			h.write(acquire(vnet, now()))
			h.write(acquire(other, now()))
			h.leasesAre(lease("m-1", 1), vnet, other)
			h.read(func(tx store.Tx) error {
				got, err := tx.ListLeases("t2")
				h.same([]core.Lease{other}, got)
				return err
			})
			// The end of one is not the end of the others.
			h.write(quarantine("m-2", 1, until))
			h.leasesAre(lease("m-1", 1), vnet, other)
		},
		"leases are listed by address": func(h *harness) {
			var want []core.Lease
			for _, last := range []int{4, 9, 10, 100} {
				l := lease("m", 1)
				l.Address = addr(last)
				want = append(want, l)
			}
			for _, i := range []int{2, 0, 3, 1} {
				h.write(acquire(want[i], now()))
			}
			h.leasesAre(want...)
		},
	}
}

// ending ends the lease of member m-1, generation 2, or of something near it.
func ending(change func(*core.Lease)) func(store.Tx) error {
	l := lease("m-1", 2)
	change(&l)
	return func(tx store.Tx) error { return tx.QuarantineLease(l, now().Add(time.Minute), "confirmed") }
}

func renewals() map[string]func(h *harness) {
	later := now().Add(time.Hour)
	renew := func(l core.Lease) func(store.Tx) error {
		return func(tx store.Tx) error { return tx.RenewLease(l, later, later.Add(time.Minute)) }
	}
	renewed := lease("m-1", 1)
	renewed.RenewedAt, renewed.ExpiresAt = later, later.Add(time.Minute)
	return map[string]func(h *harness){
		"a lease is renewed for its holder alone": func(h *harness) {
			h.write(acquire(lease("m-1", 1), now()))
			h.write(renew(lease("m-1", 2)))
			h.write(renew(lease("m-2", 1)))
			h.leasesAre(lease("m-1", 1))
			h.write(renew(lease("m-1", 1)))
			h.leasesAre(renewed)
		},
		"a lease that has expired is held all the same": func(h *harness) {
			h.write(acquire(lease("m-1", 1), now()))
			year := now().Add(365 * 24 * time.Hour)
			h.refused(errs.Conflict, acquire(lease("m-2", 1), year), "m-1")
			h.write(func(tx store.Tx) error { return tx.PurgeLeases(year) })
			h.leasesAre(lease("m-1", 1))
		},
		"a lease that has ended is not renewed": func(h *harness) {
			h.write(acquire(lease("m-1", 1), now()))
			h.write(quarantine("m-1", 1, now().Add(time.Minute)))
			h.write(renew(lease("m-1", 1)))
			ended := lease("m-1", 1)
			ended.State, ended.ReusableAt, ended.Reason = core.LeaseQuarantined, now().Add(time.Minute), "confirmed"
			h.leasesAre(ended)
		},
		"a quarantine can be brought forward, not drawn out": func(h *harness) {
			h.write(acquire(lease("m-1", 1), now()))
			h.write(quarantine("m-1", 1, later))
			h.write(quarantine("m-1", 1, later.Add(time.Hour)))
			h.refused(errs.Conflict, acquire(lease("m-2", 1), later.Add(-time.Nanosecond)))
			h.write(quarantine("m-1", 1, now()))
			h.write(acquire(lease("m-2", 1), now()))
			h.leasesAre(lease("m-2", 1))
		},
	}
}

func quarantines() map[string]func(h *harness) {
	until := now().Add(time.Minute)
	return map[string]func(h *harness){
		"only its holder ends a lease": func(h *harness) {
			h.write(acquire(lease("m-1", 2), now()))
			for _, end := range []func(store.Tx) error{
				quarantine("m-1", 1, until), quarantine("m-1", 3, until), quarantine("m-2", 2, until),
				ending(func(l *core.Lease) { l.Tenant = "t2" }), ending(func(l *core.Lease) { l.VNetUID = "uv2" }),
				ending(func(l *core.Lease) { l.Address = addr(5) }),
			} {
				h.write(end)
			}
			h.leasesAre(lease("m-1", 2))
		},
		"a quarantined address is not reusable until its time": func(h *harness) {
			h.write(acquire(lease("m-1", 1), now()))
			h.write(quarantine("m-1", 1, until))
			ended := lease("m-1", 1)
			ended.State, ended.ReusableAt, ended.Reason = core.LeaseQuarantined, until, "confirmed"
			h.leasesAre(ended)
			h.refused(errs.Conflict, acquire(lease("m-2", 1), until.Add(-time.Nanosecond)), "m-1", "m-2", "quarantined")
			h.refused(errs.Conflict, acquire(lease("m-1", 1), now()))
			h.write(acquire(lease("m-2", 1), until))
			h.leasesAre(lease("m-2", 1))
		},
		"a late end of an earlier lease changes nothing": func(h *harness) {
			h.write(acquire(lease("m-1", 1), now()))
			h.write(quarantine("m-1", 1, until))
			h.write(quarantine("m-1", 1, until.Add(time.Hour))) // told twice: the first counts
			h.write(acquire(lease("m-2", 1), until))
			h.write(quarantine("m-1", 1, until))
			h.leasesAre(lease("m-2", 1))
		},
		"a lease that was refused leaves nothing": func(h *harness) {
			h.write(acquire(lease("m-1", 1), now()))
			free := lease("m-2", 1)
			free.Address = addr(5)
			h.refused(errs.Conflict, func(tx store.Tx) error {
				if err := tx.AcquireLease(free, now()); err != nil {
					h.Error(err)
				}
				return tx.AcquireLease(lease("m-2", 1), now())
			})
			h.leasesAre(lease("m-1", 1))
		},
		"purging takes what is reusable, nothing else": func(h *harness) {
			h.write(acquire(lease("m-1", 1), now()))
			h.write(func(tx store.Tx) error { return tx.PurgeLeases(until.Add(time.Hour)) })
			h.leasesAre(lease("m-1", 1))
			h.write(quarantine("m-1", 1, until))
			h.write(func(tx store.Tx) error { return tx.PurgeLeases(until.Add(-time.Nanosecond)) })
			h.read(func(tx store.Tx) error {
				got, err := tx.ListLeases(tenant)
				if len(got) != 1 {
					h.Errorf("purged before its time: %v", got)
				}
				return err
			})
			h.write(func(tx store.Tx) error { return tx.PurgeLeases(until) })
			h.leasesAre()
		},
		"of many that lease an address at once one succeeds": func(h *harness) {
			won := race(h, func(i int) func(store.Tx) error { return acquire(lease(fmt.Sprintf("m-%d", i), 1), now()) })
			if won != 1 {
				h.Errorf("%d succeeded", won)
			}
		},
		"of many that lease a quarantined address at once one succeeds": func(h *harness) {
			h.write(acquire(lease("m", 1), now()))
			h.write(quarantine("m", 1, until))
			won := race(h, func(i int) func(store.Tx) error { return acquire(lease(fmt.Sprintf("m-%d", i), 1), until) })
			if won != 1 {
				h.Errorf("%d succeeded", won)
			}
		},
	}
}
