package storetest

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

func addr(last int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("10.20.0.%d", last))
}

// member n has a tunnel address of its own and is the n-th that was made.
func member(n int) core.Member {
	return core.Member{
		ID: fmt.Sprintf("m-%d", n), Tenant: tenant, Generation: 1, Gateway: "g", GatewayUID: "ug", VNet: "v", VNetUID: "uv",
		Subnet: "s", Host: "h1", Address: addr(n), TunnelAddress: netip.MustParseAddr(fmt.Sprintf("169.254.0.%d", n)),
		State: core.MemberPlaced, Reason: "why", Size: core.MemberSize{CPUs: 1.5, MemoryMiB: 512},
		CreatedAt: now().Add(time.Duration(n) * time.Second),
	}
}

func putMember(m core.Member) func(store.Tx) error {
	return func(tx store.Tx) error { return tx.PutMember(m) }
}

func members() map[string]func(h *harness) {
	return map[string]func(h *harness){
		"a member comes back whole and is updated by ID": func(h *harness) {
			m := member(1)
			h.write(putMember(m))
			for _, state := range []core.MemberState{core.MemberInjected, core.MemberReady, core.MemberLeaving, core.MemberGone} {
				m.State, m.ReadyAt, m.Generation = state, now(), m.Generation+1
				h.write(putMember(m))
				h.read(func(tx store.Tx) error {
					got, err := tx.GetMember("m-1")
					h.same(m, got)
					return err
				})
			}
			h.missing(func(tx store.Tx) error { _, err := tx.GetMember("m-2"); return err })
		},
		"what changes in a goal state is found by its version": changesInGoalStates,
		"an unknown state is refused": func(h *harness) {
			m := member(1)
			m.State = "lost"
			h.refused(errs.Internal, putMember(m))
		},
		"members are listed newest first, gone ones on demand": func(h *harness) {
			all := []core.Member{member(3), member(2), member(1)}
			all[1].State = core.MemberGone
			other := member(4)
			other.Tenant = "t2"
			h.write(func(tx store.Tx) error {
				for _, m := range append([]core.Member{other}, all...) {
					if err := tx.PutMember(m); err != nil {
						return err
					}
				}
				return nil
			})
			h.read(func(tx store.Tx) error {
				got, err := tx.ListMembers(tenant, true)
				h.same(all, got)
				got, _ = tx.ListMembers(tenant, false)
				h.same([]core.Member{all[0], all[2]}, got)
				got, _ = tx.ListMembers("", true)
				h.same(append([]core.Member{other}, all...), got)
				return err
			})
		},
	}
}

func tunnelAddresses() map[string]func(h *harness) {
	return map[string]func(h *harness){
		"two members can't share a tunnel address on a host": func(h *harness) {
			first, second := member(1), member(2)
			second.TunnelAddress = first.TunnelAddress
			h.write(putMember(first))
			h.refused(errs.Conflict, putMember(second), "m-1", "m-2", "169.254.0.1", "h1")
			elsewhere := second
			elsewhere.Host = "h2"
			h.write(putMember(elsewhere))
			first.State = core.MemberLeaving // its teardown is not confirmed
			h.write(putMember(first))
			h.refused(errs.Conflict, putMember(second))
			first.State = core.MemberGone
			h.write(putMember(first))
			h.write(putMember(second))
			first.State = core.MemberReady // nothing that is gone may come back into its place
			h.refused(errs.Conflict, putMember(first))
		},
		"members without a tunnel address yet stand in nobody's way": func(h *harness) {
			for i := range 2 {
				m := member(i)
				m.TunnelAddress = netip.Addr{}
				h.write(putMember(m))
			}
		},
		"members that are gone for long are purged": func(h *harness) {
			gone, here := member(1), member(2)
			gone.State = core.MemberGone
			before := time.Now().Add(-time.Minute)
			h.write(putMember(gone))
			h.write(putMember(here))
			h.write(func(tx store.Tx) error { return tx.PurgeMembers(before) })
			h.read(func(tx store.Tx) error { _, err := tx.GetMember("m-1"); return err })
			h.write(func(tx store.Tx) error { return tx.PurgeMembers(time.Now().Add(time.Minute)) })
			h.missing(func(tx store.Tx) error { _, err := tx.GetMember("m-1"); return err })
			h.read(func(tx store.Tx) error { _, err := tx.GetMember("m-2"); return err })
		},
	}
}

// set and use are about the join hash of member 1.
func set(generation int64, hash string) func(store.Tx) error {
	return func(tx store.Tx) error { return tx.SetJoinHash("m-1", generation, hash) }
}

func use(hash string) func(store.Tx) error {
	return func(tx store.Tx) error { _, err := tx.UseJoinHash("m-1", hash); return err }
}

func joinHashes() map[string]func(h *harness) {
	return map[string]func(h *harness){
		"a join hash works once": func(h *harness) {
			h.write(putMember(member(1)))
			h.write(set(1, "aa"))
			h.write(set(1, "aa"))
			h.write(func(tx store.Tx) error {
				got, err := tx.UseJoinHash("m-1", "aa")
				h.same(member(1), got)
				return err
			})
			h.refused(errs.Conflict, use("aa"), "m-1")
		},
		"a used join hash stays used": func(h *harness) {
			h.write(putMember(member(1)))
			h.write(set(1, "aa"))
			h.write(use("aa"))
			h.write(set(1, "aa"))
			h.refused(errs.Conflict, use("aa"))
			h.refused(errs.Conflict, set(1, "bb"), "m-1", "joined") // of the same generation
			if err := h.store.Write(h.ctx(), use("bb")); err == nil {
				h.Error("a second hash of one generation was used")
			}
			h.write(putMember(member(1)))
			h.refused(errs.Conflict, use("aa"))
		},
		"a use that is rolled back was none": func(h *harness) {
			h.write(putMember(member(1)))
			h.write(set(1, "aa"))
			_ = h.store.Write(h.ctx(), func(tx store.Tx) error {
				if _, err := tx.UseJoinHash("m-1", "aa"); err != nil {
					h.Error(err)
				}
				return fmt.Errorf("stop")
			})
			h.write(use("aa"))
		},
		"a join hash is of one generation": func(h *harness) {
			m := member(1)
			h.write(putMember(m))
			h.write(set(1, "aa"))
			h.write(set(2, "bb")) // not the member's: changes nothing
			h.refused(errs.NotFound, use("bb"))
			m.Generation = 2
			h.write(putMember(m))
			h.refused(errs.NotFound, use("aa"))
			h.write(set(1, "aa"))
			h.refused(errs.NotFound, use("aa"))
			h.write(set(2, "bb"))
			h.write(use("bb"))
			m.Generation = 3
			h.write(putMember(m))
			h.write(set(3, "cc"))
			h.write(use("cc"))
		},
	}
}

func joinRefusals() map[string]func(h *harness) {
	return map[string]func(h *harness){
		"a wrong join hash is refused": func(h *harness) {
			h.refused(errs.NotFound, use("aa"), "m-1")
			h.refused(errs.NotFound, set(1, "aa"), "m-1")
			h.write(putMember(member(1)))
			h.refused(errs.NotFound, use("aa"))
			h.refused(errs.NotFound, use("")) // none is set: an empty one is not it
			if err := h.store.Write(h.ctx(), set(1, "")); err == nil {
				h.Error("an empty hash was stored")
			}
			h.write(set(1, "aa"))
			h.refused(errs.NotFound, use("ab"))
			h.refused(errs.NotFound, use(""))
			h.write(use("aa"))
		},
		"a member that is gone does not join": func(h *harness) {
			m := member(1)
			h.write(putMember(m))
			h.write(set(1, "aa"))
			m.State = core.MemberGone
			h.write(putMember(m))
			h.refused(errs.Conflict, use("aa"), "gone")
		},
		"of many that use a join hash at once one succeeds": func(h *harness) {
			h.write(putMember(member(1)))
			h.write(set(1, "aa"))
			if won := race(h, func(int) func(store.Tx) error { return use("aa") }); won != 1 {
				h.Errorf("%d succeeded", won)
			}
		},
	}
}

// race runs 16 Writes at once and counts those that succeed; the others must fail as
// conflicts.
func race(h *harness, fn func(i int) func(store.Tx) error) int {
	const n = 16
	start, results := make(chan struct{}), make(chan error, n)
	for i := range n {
		go func() {
			<-start
			results <- h.store.Write(h.ctx(), fn(i))
		}()
	}
	close(start)
	won := 0
	for range n {
		if err := <-results; err == nil {
			won++
		} else {
			h.fails(err, errs.Conflict)
		}
	}
	return won
}

func changesInGoalStates(h *harness) {
	changed := func(since int64) (ids []string) {
		h.read(func(tx store.Tx) error {
			list, err := tx.ChangedMembers("h1", since)
			for _, m := range list {
				ids = append(ids, m.ID+" "+string(m.State))
			}
			slices.Sort(ids)
			return err
		})
		return ids
	}
	version := int64(0)
	put := func(m core.Member) {
		h.write(func(tx store.Tx) (err error) {
			if version, err = tx.NextGoalVersion(m.Host); err != nil {
				return err
			}
			return tx.PutMember(m)
		})
	}
	one, two, elsewhere := member(1), member(2), member(3)
	elsewhere.Host = "h2"
	put(one)
	put(two)
	first := version
	put(elsewhere)
	h.same([]string{"m-1 placed", "m-2 placed"}, changed(0))
	h.same([]string(nil), changed(first))
	one.State, one.Reason, one.ReadyAt = core.MemberReady, "dialled back", now()
	put(one)
	h.same([]string(nil), changed(first)) // a goal state says nothing of that
	for _, change := range []func(m *core.Member){
		func(m *core.Member) { m.Address = addr(77) },
		func(m *core.Member) { m.TunnelAddress = addr(78) },
		func(m *core.Member) { m.Size.CPUs++ },
		func(m *core.Member) { m.Size.MemoryMiB++ },
		func(m *core.Member) { m.Subnet += "x" },
		func(m *core.Member) { m.VNetUID += "x" },
		func(m *core.Member) { m.Gateway += "x" },
		func(m *core.Member) { m.Tenant += "x" },
		func(m *core.Member) { m.Generation++ },
		func(m *core.Member) { m.State = core.MemberLeaving },
	} {
		before := version
		change(&one)
		put(one)
		h.same([]string{"m-1 " + string(one.State)}, changed(before))
	}
	before := version
	one.State = core.MemberGone
	put(one)
	h.same([]string(nil), changed(before))
	h.same([]string{"m-1 gone"}, changed(first))
}
