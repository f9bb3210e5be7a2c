package host

import (
	"context"
	"net/netip"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// withAddress lists the members of a goal state that have an address, or wait for one by
// DHCP. Those that have lost theirs go, whatever the goal state says: another may have it.
func (h *Host) withAddress(goal *core.GoalState) []core.GoalMember {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []core.GoalMember
	for _, m := range goal.Members {
		if h.lost[portOf(m).Key()] == "" {
			out = append(out, m)
		}
	}
	return out
}

// takeLeases keeps what Set said of addresses by DHCP. The caller holds mu.
func (h *Host) takeLeases(goal *core.GoalState, leased map[hostnet.PortKey]hostnet.Leased) {
	wanted := map[hostnet.PortKey]bool{}
	for _, m := range goal.Members {
		wanted[portOf(m).Key()] = true
	}
	h.leased = map[hostnet.PortKey]netip.Addr{}
	for k, l := range leased {
		h.leased[k] = l.Address
		if l.Lost != "" && wanted[k] && h.lost[k] == "" {
			h.lost[k] = l.Lost
			h.log.Warn("a member has no address any more", "member", k.Member, "reason", l.Lost)
			poke(h.kick)
		}
	}
	for k := range h.lost {
		if !wanted[k] {
			delete(h.lost, k)
		}
	}
}

// observeLeases adds to a report what members hold, or have lost, by DHCP. One that holds
// an address is not gone. The caller holds mu.
func (h *Host) observeLeases(r *core.HostReport) {
	at := map[hostnet.PortKey]int{}
	for i, m := range r.Members {
		at[hostnet.PortKey{Member: m.ID, Generation: m.Generation}] = i
	}
	of := func(k hostnet.PortKey) *core.ObservedMember {
		i, ok := at[k]
		if !ok {
			i, at[k] = len(r.Members), len(r.Members)
			r.Members = append(r.Members, core.ObservedMember{ID: k.Member, Generation: k.Generation})
		}
		return &r.Members[i]
	}
	for k, a := range h.leased {
		o := of(k)
		o.Present, o.Address = true, a
	}
	for k, why := range h.lost {
		o := of(k)
		o.Exit, o.Running = why, false
	}
}

// watchNetwork looks again when an address came or went.
func (h *Host) watchNetwork(ctx context.Context) {
	w, ok := h.opts.Network.(hostnet.Watcher)
	if !ok {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.Changes():
			poke(h.kick)
		}
	}
}
