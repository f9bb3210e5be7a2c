package policy

import (
	"net/netip"

	"github.com/sluice-gateway/sluice/internal/core"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// corpVNet is the example network as its goal state describes it.
func corpVNet() core.GoalVNet {
	return core.GoalVNet{
		UID: "v1", Tenant: core.DefaultTenant, Name: "corp",
		AddressSpace: []netip.Prefix{prefix("10.20.0.0/16")},
		Subnets: []core.Subnet{
			{Name: "gateways", Prefix: prefix("10.20.0.0/24"), Delegation: core.DelegationGateways, NSG: "gateways", NATGateway: "egress"},
			{Name: "data", Prefix: prefix("10.20.1.0/24"), NSG: "data"},
		},
		NSGs: []core.NetworkSecurityGroup{
			{Name: "gateways", Rules: []core.SecurityRule{
				{Name: "allow-postgres", Priority: 100, Direction: core.Outbound, Access: core.Allow, Protocol: core.ProtocolTCP,
					Source: []string{"Any"}, Destination: []string{"10.20.1.0/24"}, DestinationPorts: []string{"5432"}},
				{Name: "deny-rest-of-vnet", Priority: 4000, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolAny,
					Source: []string{"Any"}, Destination: []string{"VirtualNetwork"}},
			}},
			{Name: "data", Rules: []core.SecurityRule{
				{Name: "only-gateways", Priority: 100, Direction: core.Inbound, Access: core.Allow, Protocol: core.ProtocolTCP,
					Source: []string{"10.20.0.0/24"}, Destination: []string{"Any"}, DestinationPorts: []string{"5432"}},
				{Name: "deny-all", Priority: 4096, Direction: core.Inbound, Access: core.Deny, Protocol: core.ProtocolAny,
					Source: []string{"Any"}, Destination: []string{"Any"}},
			}},
		},
		NATGateways: []core.GoalNATGateway{{UID: "n1", NATGateway: core.NATGateway{Name: "egress", VNet: "corp", PublicAddresses: []string{"host"}}}},
		Endpoints:   []core.GoalEndpoint{{UID: "e1", Name: "orders-db", Subnet: "data", Address: addr("10.20.1.4"), Port: 5432, Target: "127.0.0.1:5432"}},
	}
}

// corpInput adds two members and the resolvers of the subnet that they are in.
func corpInput() VNetInput {
	return VNetInput{
		VNet: corpVNet(),
		Ports: []PortBinding{
			{Interface: "sl-m2", MAC: "02:00:00:00:00:02", Address: addr("10.20.0.5"), Subnet: "gateways"},
			{Interface: "sl-m1", MAC: "02:00:00:00:00:01", Address: addr("10.20.0.4"), Subnet: "gateways"},
		},
		Resolvers:     corpResolvers(),
		NATInterfaces: map[string]string{"egress": "sl-nat1"},
	}
}

func corpResolvers() []netip.Addr { return []netip.Addr{addr("10.20.0.2"), addr("10.20.0.3")} }
