package placement

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// Goal returns the goal state of a host: the virtual networks of every tenant that
// have a gateway or a member on the host, so that a wake finds its network built,
// and the members that must run.
func Goal(host string, version int64, resources []core.Stored, members []core.Member) core.GoalState {
	goal := core.GoalState{Version: version}
	wanted := map[string]bool{} // VNet UIDs
	for _, m := range members {
		if m.Host == host && Runs(m.State) {
			goal.Members = append(goal.Members, GoalMember(m))
			wanted[m.VNetUID] = true
		}
	}
	byTenant := map[core.TenantID][]core.Stored{}
	for _, r := range resources {
		byTenant[r.Tenant] = append(byTenant[r.Tenant], r)
	}
	for _, set := range byTenant {
		used := map[string]bool{}
		for _, r := range set {
			if g, ok := r.Spec.(*core.Gateway); ok {
				used[g.VNet] = true
			}
		}
		built := withPeers(set, func(r core.Stored, v *core.VirtualNetwork) bool { return used[v.Name] || wanted[r.UID] })
		for _, r := range set {
			if v, ok := r.Spec.(*core.VirtualNetwork); ok && built[r.UID] {
				goal.VNets = append(goal.VNets, nicsHere(localPeers(uplinksHere(VNet(r, v, set, members), host), built), goal.Members))
			}
		}
	}
	slices.SortFunc(goal.VNets, func(a, b core.GoalVNet) int { return strings.Compare(a.UID, b.UID) })
	slices.SortFunc(goal.Members, func(a, b core.GoalMember) int { return strings.Compare(a.ID, b.ID) })
	return goal
}

// Runs reports whether a member in this state belongs into a goal state.
func Runs(s core.MemberState) bool {
	return s == core.MemberPlaced || s == core.MemberInjected || s == core.MemberReady
}

// GoalMember is a member as its host's goal state has it.
func GoalMember(m core.Member) core.GoalMember {
	return core.GoalMember{
		ID: m.ID, Generation: m.Generation, Tenant: m.Tenant, Gateway: m.Gateway,
		VNetUID: m.VNetUID, Subnet: m.Subnet, Address: m.Address, TunnelAddress: m.TunnelAddress, Size: m.Size,
	}
}

// VNet resolves everything that a virtual network refers to, or that refers to it,
// within one tenant's resources. Members may be those of every tenant and host: an
// address belongs to its groups wherever its member runs.
func VNet(stored core.Stored, v *core.VirtualNetwork, set []core.Stored, members []core.Member) core.GoalVNet {
	out := core.GoalVNet{
		UID: stored.UID, Tenant: stored.Tenant, Name: v.Name,
		AddressSpace: v.AddressSpace, Subnets: v.Subnets, Uplinks: goalUplinks(v),
		RouteTables: routeTables(v, set), Peers: goalPeers(v, set),
		DNS: core.GoalDNS{Servers: core.DNSServers(v.DNS.Servers), Timeout: v.DNS.Timeout},
	}
	nsgs := map[string]bool{}
	for _, s := range v.Subnets {
		nsgs[s.NSG] = true
	}
	for _, r := range set {
		if g, ok := r.Spec.(*core.Gateway); ok && g.VNet == v.Name {
			nsgs[g.NetworkSecurityGroup] = true
		}
	}
	for _, r := range set {
		switch spec := r.Spec.(type) {
		case *core.NetworkSecurityGroup:
			if nsgs[spec.Name] {
				out.NSGs = append(out.NSGs, *spec)
			}
		case *core.NATGateway:
			if spec.VNet == v.Name {
				out.NATGateways = append(out.NATGateways, core.GoalNATGateway{UID: r.UID, NATGateway: *spec})
			}
		case *core.PrivateEndpoint:
			if spec.VNet == v.Name {
				out.Endpoints = append(out.Endpoints, goalEndpoint(r.UID, spec))
			}
		case *core.PrivateDNSZone:
			if slices.Contains(spec.VNets, v.Name) {
				out.Zones = append(out.Zones, goalZone(spec, v.Name, set))
			}
		}
	}
	resolveGroups(&out, set, members)
	return out
}

func goalEndpoint(uid string, e *core.PrivateEndpoint) core.GoalEndpoint {
	out := core.GoalEndpoint{UID: uid, Name: e.Name, Subnet: e.Subnet, Address: e.Address, Target: e.Target}
	if i := strings.LastIndexByte(e.Target, ':'); i >= 0 {
		if port, err := strconv.ParseUint(e.Target[i+1:], 10, 16); err == nil {
			out.Port = uint16(port)
		}
	}
	return out
}

// goalZone is a zone as one of its networks sees it: with the names of that network's
// endpoints.
func goalZone(z *core.PrivateDNSZone, vnet string, set []core.Stored) core.GoalZone {
	out := core.GoalZone{Name: z.Domain(), Records: endpointRecords(z.Domain(), vnet, set)}
	for _, r := range z.Records {
		ttl := r.TTL
		if ttl == 0 {
			ttl = z.TTL
		}
		out.Records = append(out.Records, core.GoalRecord{Name: r.FullName(out.Name), Type: r.Type, TTL: ttl, Values: r.Values})
	}
	return out
}

// endpointRecords are the names of the VNet's endpoints, and of its peers', that lie in the
// zone. Of one name, the VNet's own is seen.
func endpointRecords(zone, vnet string, set []core.Stored) []core.GoalRecord {
	var out []core.GoalRecord
	seen := map[string]string{} // name → network
	for _, in := range seenFrom(vnet, set) {
		for _, r := range set {
			e, ok := r.Spec.(*core.PrivateEndpoint)
			if !ok || e.VNet != in || e.DNSName == "" || seen[e.DNSName] != "" && seen[e.DNSName] != in {
				continue
			}
			if e.DNSName == zone || strings.HasSuffix(e.DNSName, "."+zone) {
				out = append(out, core.GoalRecord{Name: e.DNSName, Address: e.Address})
				seen[e.DNSName] = in
			}
		}
	}
	return out
}

// Resolvers returns the addresses of a subnet on which its VNet's resolver answers.
func Resolvers(subnet netip.Prefix) []netip.Addr {
	a := subnet.Masked().Addr().Next().Next()
	return []netip.Addr{a, a.Next()}
}
