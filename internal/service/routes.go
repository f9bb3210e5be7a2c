package service

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/placement"
	"github.com/sluice-gateway/sluice/internal/policy"
)

// PeeringStatus is one peering in the status of a virtual network.
type PeeringStatus struct {
	Name   string            `json:"name"`
	Remote string            `json:"remote"`
	State  core.PeeringState `json:"state"`
	Reason string            `json:"reason,omitempty"`
}

func peeringStatus(own core.Stored, v *core.VirtualNetwork, sn *snapshot, members []core.Member) []PeeringStatus {
	var out []PeeringStatus
	for _, p := range v.Peerings {
		stored := sn.byName[core.KindVirtualNetwork][p.Remote]
		remote, _ := stored.Spec.(*core.VirtualNetwork)
		st := PeeringStatus{Name: p.Name, Remote: p.Remote, State: v.StateOf(p, remote)}
		if st.State != core.PeeringConnected {
			st.Reason = fmt.Sprintf("VirtualNetwork/%s has no peering with remote %s", p.Remote, v.Name)
		} else {
			st.Reason = hostsApart(own, stored, members)
		}
		out = append(out, st)
	}
	return out
}

// hostsApart says that some members of two connected networks don't reach each other, or
// "".
func hostsApart(a, b core.Stored, members []core.Member) string {
	of := map[string][]string{}
	for _, m := range members {
		if !slices.Contains(of[m.VNetUID], m.Host) {
			of[m.VNetUID] = append(of[m.VNetUID], m.Host)
		}
	}
	here, there := of[a.UID], of[b.UID]
	if len(here) == 0 || len(there) == 0 || len(here) == 1 && slices.Equal(here, there) {
		return ""
	}
	slices.Sort(here)
	slices.Sort(there)
	return fmt.Sprintf("its members are on %s, those of VirtualNetwork/%s on %s: members on different hosts don't reach each other; private endpoints are reached from each host",
		strings.Join(here, ", "), b.Spec.ResourceName(), strings.Join(there, ", "))
}

// evaluator knows the rules and routes of a network, and the rules of those that it is
// connected to, for flows that begin on a host; "" where nothing runs yet.
func (s *Service) evaluator(ctx context.Context, t core.TenantID, v core.GoalVNet, host string) *policy.Evaluator {
	out, members := policy.NewEvaluator(v, resolvers(v)), s.opts.Fleet.Members(t)
	for _, peer := range s.peers(ctx, t, v, members) {
		out.AddPeer(peer, resolvers(peer))
	}
	out.On(host, members)
	return out
}

// peers are the networks that one is connected to, as a host sees them.
func (s *Service) peers(ctx context.Context, t core.TenantID, v core.GoalVNet, members []core.Member) []core.GoalVNet {
	if len(v.Peers) == 0 {
		return nil
	}
	sn, err := s.snap(ctx, t)
	if err != nil {
		return nil
	}
	var out []core.GoalVNet
	for _, p := range v.Peers {
		r := sn.byName[core.KindVirtualNetwork][p.Name]
		if spec, ok := r.Spec.(*core.VirtualNetwork); ok {
			out = append(out, placement.VNet(r, spec, sn.all, members))
		}
	}
	return out
}

// routeReason names where a flow leads and the route that decides.
func routeReason(rules *policy.Evaluator, f policy.Flow, v policy.Verdict) string {
	by, ok := rules.Deciding(f)
	if !ok || strings.Contains(v.Route, by.String()) {
		return "route: " + v.Route
	}
	return fmt.Sprintf("route: %s, by %s", v.Route, by)
}

// routeHint says what to change where no route leads to a destination.
func routeHint(rules *policy.Evaluator, f policy.Flow) string {
	if by, ok := rules.Deciding(f); ok && by.Table != "" {
		return fmt.Sprintf("change route %s of RouteTable/%s, or the subnet's routeTable; \"sluice check --effective-routes\" lists what holds", by.Name, by.Table)
	}
	return "give the subnet a NAT gateway, or the data source an address inside the network"
}
