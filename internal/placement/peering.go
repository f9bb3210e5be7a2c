package placement

import (
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// Peers lists the networks that v is connected to: each names the other.
func Peers(v *core.VirtualNetwork, set []core.Stored) []core.Stored {
	var out []core.Stored
	for _, p := range v.Peerings {
		for _, r := range set {
			remote, ok := r.Spec.(*core.VirtualNetwork)
			if ok && remote.Name == p.Remote && v.StateOf(p, remote) == core.PeeringConnected {
				out = append(out, r)
			}
		}
	}
	return out
}

func goalPeers(v *core.VirtualNetwork, set []core.Stored) []core.GoalPeer {
	var out []core.GoalPeer
	for _, r := range Peers(v, set) {
		remote := r.Spec.(*core.VirtualNetwork)
		out = append(out, core.GoalPeer{UID: r.UID, Name: remote.Name, AddressSpace: remote.AddressSpace})
	}
	slices.SortFunc(out, func(a, b core.GoalPeer) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// withPeers adds the peers of the networks that a host needs: it builds both sides, so
// that what the other side holds can be reached from any host.
func withPeers(set []core.Stored, needed func(core.Stored, *core.VirtualNetwork) bool) map[string]bool {
	out := map[string]bool{}
	for _, r := range set {
		v, ok := r.Spec.(*core.VirtualNetwork)
		if !ok || !needed(r, v) {
			continue
		}
		out[r.UID] = true
		for _, p := range Peers(v, set) {
			out[p.UID] = true
		}
	}
	return out
}

// localPeers leaves out the peers of a network that this host does not build: a peer's own
// peers, which it reaches and we don't.
func localPeers(v core.GoalVNet, built map[string]bool) core.GoalVNet {
	v.Peers = slices.DeleteFunc(v.Peers, func(p core.GoalPeer) bool { return !built[p.UID] })
	return v
}

// routeTables lists the tables that the network's subnets name.
func routeTables(v *core.VirtualNetwork, set []core.Stored) []core.RouteTable {
	var out []core.RouteTable
	for _, r := range set {
		t, ok := r.Spec.(*core.RouteTable)
		if ok && slices.ContainsFunc(v.Subnets, func(s core.Subnet) bool { return s.RouteTable == t.Name }) {
			out = append(out, *t)
		}
	}
	return out
}

// seenFrom lists the networks whose private endpoints a network reaches, its own first.
func seenFrom(vnet string, set []core.Stored) []string {
	out := []string{vnet}
	for _, r := range set {
		if v, ok := r.Spec.(*core.VirtualNetwork); ok && v.Name == vnet {
			for _, p := range goalPeers(v, set) {
				out = append(out, p.Name)
			}
		}
	}
	return out
}
