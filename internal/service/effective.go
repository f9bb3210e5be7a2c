package service

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/placement"
	"github.com/sluice-gateway/sluice/internal/policy"
)

// effective answers with the rules and routes that hold for a gateway's members, or for
// the addresses of a subnet. Members of one gateway have the same.
func (s *Service) effective(ctx context.Context, t core.TenantID, in core.Check) (core.CheckResult, error) {
	vnet, subnet, from, err := s.vantage(ctx, t, in)
	if err != nil {
		return core.CheckResult{}, err
	}
	out := core.CheckResult{Source: from.Address.String(), Reasons: []string{}}
	if in.EffectiveRules {
		out.Rules = policy.EffectiveRules(vnet, subnet, from.Address)
	}
	if in.EffectiveRoutes {
		out.Source, out.Routes = subnet.Prefix.String(), policy.EffectiveRoutes(vnet, subnet)
	}
	if in.NextHop {
		to, ok := destination(vnet, in.Host, nil)
		if !ok {
			return out, errs.New(errs.NotFound, "%s is neither an address nor a name of a private zone linked to VirtualNetwork/%s", in.Host, vnet.Name)
		}
		out.Destination, out.Endpoint = to.String(), s.endpointAt(ctx, t, vnet, to, in.Port)
		out.NextHop = nextHop(s.evaluator(ctx, t, vnet, from.Host), from.Address, to, out.Endpoint)
	}
	return out, nil
}

// vantage is where a check asks from: a member of the gateway that runs, or what one
// would be; or the first address of a subnet, which no rule knows as a member's.
func (s *Service) vantage(ctx context.Context, t core.TenantID, in core.Check) (core.GoalVNet, core.Subnet, core.Member, error) {
	if in.Gateway != "" {
		ref, err := s.gatewayRef(ctx, t, in.Gateway)
		if err != nil {
			return core.GoalVNet{}, core.Subnet{}, core.Member{}, err
		}
		vnet, gw, err := s.networkOf(ctx, t, in.Gateway)
		if err != nil {
			return core.GoalVNet{}, core.Subnet{}, core.Member{}, err
		}
		from := s.anyMember(ref.UID, t, vnet, gw.Subnet)
		placement.AddMember(&vnet, gw, from.Address) // it need not run yet
		subnet, err := subnetOf(vnet, gw.Subnet)
		return vnet, subnet, from, err
	}
	sn, err := s.snap(ctx, t)
	if err != nil {
		return core.GoalVNet{}, core.Subnet{}, core.Member{}, err
	}
	r, err := sn.find(core.KindVirtualNetwork, in.VNet)
	if err != nil {
		return core.GoalVNet{}, core.Subnet{}, core.Member{}, err
	}
	vnet := placement.VNet(r, r.Spec.(*core.VirtualNetwork), sn.all, s.opts.Fleet.Members(t))
	vnet.NICs = nil // the subnet's own rules, whoever has the address
	subnet, err := subnetOf(vnet, in.Subnet)
	return vnet, subnet, core.Member{Address: placement.FirstAddress(subnet.Prefix)}, err
}

func subnetOf(v core.GoalVNet, name string) (core.Subnet, error) {
	i := slices.IndexFunc(v.Subnets, func(s core.Subnet) bool { return s.Name == name })
	if i < 0 {
		return core.Subnet{Prefix: netip.PrefixFrom(netip.IPv4Unspecified(), 0)}, errs.New(errs.NotFound, "VirtualNetwork/%s has no subnet %q", v.Name, name)
	}
	return v.Subnets[i], nil
}

// nextHop says where packets from one address to another go, whatever rules say.
func nextHop(rules *policy.Evaluator, from, to netip.Addr, at *core.EndpointAt) *core.NextHopTo {
	flow := policy.Flow{Source: from, Destination: to, Protocol: core.ProtocolTCP}
	if at != nil {
		flow.DestinationPort = at.Port
	}
	out, verdict := &core.NextHopTo{NextHop: core.HopVnetLocal}, rules.Evaluate(flow)
	if by, ok := rules.Deciding(flow); ok {
		out.NextHop, out.Through, out.Route = by.NextHop, by.Through, by.String()
	}
	if !verdict.HasRoute() {
		out.NextHop, out.Through, out.Reason = core.HopNone, "", strings.TrimPrefix(verdict.Route, "none: ")
	}
	return out
}

// endpointAt finds the private endpoint that answers on an address, of the network or of
// one that it is connected to: that of the port, if there are several.
func (s *Service) endpointAt(ctx context.Context, t core.TenantID, v core.GoalVNet, a netip.Addr, port uint16) (found *core.EndpointAt) {
	for _, net := range append([]core.GoalVNet{v}, s.peers(ctx, t, v, nil)...) {
		for _, e := range net.Endpoints {
			if e.Address == a && (found == nil || e.Port == port) {
				found = &core.EndpointAt{Name: e.Name, VNet: net.Name, Port: e.Port, Target: e.Target}
			}
		}
	}
	return found
}
