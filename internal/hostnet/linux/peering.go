package linux

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"golang.org/x/sys/unix"
)

// peerLink names, in the namespace of one network, its end of the veth to another.
func peerLink(own, other string) string { return "p" + digest(12, own, other) }

// peerInterfaces names the interfaces that the rules know, before any of them is there.
func (v *vnet) peerInterfaces() map[string]string {
	if len(v.goal.Peers) == 0 {
		return nil
	}
	out := map[string]string{}
	for _, p := range v.goal.Peers {
		out[p.UID] = peerLink(v.goal.UID, p.UID)
	}
	return out
}

// peerInVNet is what V holds for a peer: the way to its addresses, through the veth alone.
func (n *Network) peerInVNet(own string, p core.GoalPeer) state {
	link := peerLink(own, p.UID)
	s := state{neighs: []neighbour{{link, hopUp, n.peerMAC(p.UID, own)}}}
	for _, dst := range p.AddressSpace {
		s.routes = append(s.routes,
			route{table: unix.RT_TABLE_MAIN, dst: dst.Masked(), link: link, via: hopUp},
			route{table: unix.RT_TABLE_MAIN, dst: dst.Masked(), kind: unix.RTN_BLACKHOLE, metric: lastResort})
	}
	return s
}

func (n *Network) peerMAC(own, other string) string { return n.names.mac("peer", own, other).String() }

// connectPeers joins the networks that are each other's peers. It comes after their
// rules: no packet passes between two networks of which one has none yet.
func (n *Network) connectPeers(ctx context.Context) {
	for _, uid := range sortedKeys(n.vnets) {
		v := n.vnets[uid]
		for _, p := range v.goal.Peers {
			other := n.vnets[p.UID]
			switch {
			case other == nil:
				v.ready = false
				v.problem(v.object(), errs.New(errs.Unavailable, "its peering with VirtualNetwork %s is not connected: that network is not on this host", p.Name))
			case !other.names(uid):
				v.ready = false
				v.problem(v.object(), errs.New(errs.Conflict, "its peering with VirtualNetwork %s is not connected: that network does not name it", p.Name))
			case uid < p.UID:
				if err := n.connect(ctx, v, other); err != nil {
					v.ready, other.ready = false, false
					v.problem(v.object(), machineError(fmt.Sprintf("connecting VirtualNetwork %s and VirtualNetwork %s", v.goal.Name, p.Name), err))
				}
			}
		}
	}
}

// names says that the network has another as a peer.
func (v *vnet) names(uid string) bool {
	return slices.ContainsFunc(v.goal.Peers, func(p core.GoalPeer) bool { return p.UID == uid })
}

func (v *vnet) peer(uid string) core.GoalPeer {
	i := slices.IndexFunc(v.goal.Peers, func(p core.GoalPeer) bool { return p.UID == uid })
	return v.goal.Peers[i]
}

// connect makes the veth between two networks and the routes through it, unless both have
// been looked at since they changed.
func (n *Network) connect(ctx context.Context, a, b *vnet) error {
	for _, v := range []*vnet{a, b} {
		if v.at == nil || v.rules == nil || v.rules.text == "" {
			return fmt.Errorf("the rules of virtual network %s are not in force", v.goal.Name)
		}
	}
	ua, ub := a.goal.UID, b.goal.UID
	if done := a.connected[ub]; done.After(a.checked) && done.After(b.checked) && !n.due(done) {
		return nil
	}
	why := fmt.Sprintf("peering of VirtualNetwork %s and VirtualNetwork %s", shorten(a.goal.Name, 80), shorten(b.goal.Name, 80))
	ends, err := ensurePairs(ctx, pair{
		end{a.at, peerLink(ua, ub), n.names.mac("peer", ua, ub), why}, end{b.at, peerLink(ub, ua), n.names.mac("peer", ub, ua), why}})
	if err != nil {
		return err
	}
	if err := a.at.assert(newLinks(ends[0]), n.peerInVNet(ua, a.peer(ub))); err != nil {
		return err
	}
	if err := b.at.assert(newLinks(ends[1]), n.peerInVNet(ub, b.peer(ua))); err != nil {
		return err
	}
	if a.connected == nil {
		a.connected = map[string]time.Time{}
	}
	a.connected[ub] = time.Now()
	return nil
}

func clonePeers(list []core.GoalPeer) []core.GoalPeer {
	list = slices.Clone(list)
	for i := range list {
		list[i].AddressSpace = append([]netip.Prefix(nil), list[i].AddressSpace...)
	}
	return list
}
