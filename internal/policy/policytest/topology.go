package policytest

import (
	"net/netip"
	"slices"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/policy"
)

// Topology is the network that every case is about.
type Topology struct {
	VNet      core.GoalVNet // without rules
	Members   []Member
	Resolvers []netip.Addr
	// Local lists the other addresses that the network itself answers on.
	Local []netip.Addr
	// Unheld has a route to the second member, which does not hold it.
	Unheld netip.Addr
}

// Member is an address that packets come from and go to.
type Member struct {
	Address netip.Addr
	Subnet  string
}

// Network returns the topology: three subnets, two members in the first and one in each
// other, private endpoints, and a NAT gateway for the first and the last.
func Network() Topology {
	return Topology{
		VNet: core.GoalVNet{
			Name: "test", AddressSpace: []netip.Prefix{prefix("10.20.0.0/16")},
			NATGateways: []core.GoalNATGateway{{NATGateway: core.NATGateway{Name: "egress"}}},
			Subnets: []core.Subnet{
				{Name: "a", Prefix: prefix("10.20.0.0/24"), NATGateway: "egress"},
				{Name: "b", Prefix: prefix("10.20.1.0/24")},
				{Name: "c", Prefix: prefix("10.20.2.0/25"), NATGateway: "egress"},
			},
			Endpoints: []core.GoalEndpoint{
				{Name: "e1", Subnet: "b", Address: addr("10.20.1.9"), Port: 5432},
				{Name: "e2", Subnet: "b", Address: addr("10.20.1.9"), Port: 5433},
				{Name: "e3", Subnet: "c", Address: addr("10.20.2.9"), Port: 80},
			},
		},
		Members: []Member{
			{addr("10.20.0.4"), "a"}, {addr("10.20.0.5"), "a"}, {addr("10.20.1.5"), "b"}, {addr("10.20.2.4"), "c"},
		},
		Resolvers: []netip.Addr{addr("10.20.0.2"), addr("10.20.1.2")},
		Local:     []netip.Addr{addr("10.20.0.1")},
		Unheld:    addr("10.20.0.77"),
	}
}

// Holds reports whether a packet to the address would meet someone: Evaluate does not
// know it.
func (n Topology) Holds(a netip.Addr) bool {
	return slices.ContainsFunc(n.Members, func(m Member) bool { return m.Address == a }) || n.IsLocal(a)
}

// IsLocal reports whether the network itself answers on the address.
func (n Topology) IsLocal(a netip.Addr) bool {
	return slices.Contains(n.Resolvers, a) || slices.Contains(n.Local, a) ||
		slices.ContainsFunc(n.VNet.Endpoints, func(e core.GoalEndpoint) bool { return e.Address == a })
}

// Arrives says whether the first packet of a flow with this verdict must be seen at its
// destination, or answered from there.
func (n Topology) Arrives(f policy.Flow, v policy.Verdict) bool {
	if v.Allowed && v.Route == "VnetLocal" {
		return n.Holds(f.Destination)
	}
	return v.Allowed
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
