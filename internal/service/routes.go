package service

import (
	"context"
	"fmt"
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

func peeringStatus(v *core.VirtualNetwork, sn *snapshot) []PeeringStatus {
	var out []PeeringStatus
	for _, p := range v.Peerings {
		remote, _ := sn.byName[core.KindVirtualNetwork][p.Remote].Spec.(*core.VirtualNetwork)
		st := PeeringStatus{Name: p.Name, Remote: p.Remote, State: v.StateOf(p, remote)}
		if st.State != core.PeeringConnected {
			st.Reason = fmt.Sprintf("VirtualNetwork/%s has no peering with remote %s", p.Remote, v.Name)
		}
		out = append(out, st)
	}
	return out
}

// evaluator knows the rules and routes of a network, and the rules of those that it is
// connected to.
func (s *Service) evaluator(ctx context.Context, t core.TenantID, v core.GoalVNet) *policy.Evaluator {
	out := policy.NewEvaluator(v, resolvers(v))
	if len(v.Peers) == 0 {
		return out
	}
	sn, err := s.snap(ctx, t)
	if err != nil {
		return out
	}
	for _, p := range v.Peers {
		r := sn.byName[core.KindVirtualNetwork][p.Name]
		if spec, ok := r.Spec.(*core.VirtualNetwork); ok {
			peer := placement.VNet(r, spec, sn.all, s.opts.Fleet.Members(t))
			out.AddPeer(peer, resolvers(peer))
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

func effectiveRoutes(v core.GoalVNet, gw *core.Gateway) CheckResult {
	for _, sub := range v.Subnets {
		if sub.Name == gw.Subnet {
			return CheckResult{Source: sub.Prefix.String(), Reasons: []string{}, Routes: policy.EffectiveRoutes(v, sub)}
		}
	}
	return CheckResult{Reasons: []string{}}
}
