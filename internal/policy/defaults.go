package policy

import "github.com/sluice-gateway/sluice/internal/core"

// The service tags that a rule may name as its source or destination.
const (
	TagVirtualNetwork = "VirtualNetwork"
	TagInternet       = "Internet"
	TagLoadBalancer   = "LoadBalancer"
	TagPlatformDNS    = "PlatformDNS"
	TagPlatformTunnel = "PlatformTunnel"
)

// anyAddress is how a rule says "every address"; "*" says "every port".
const (
	anyAddress = "Any"
	anyPort    = "*"
)

// TunnelAddress is where each member's tunnel ends. Members reach it over a link of its
// own, which rules apply to only if they name PlatformTunnel.
const TunnelAddress = "169.254.0.1"

// dnsPort is where the resolver answers, over UDP and TCP.
const dnsPort = 53

// DefaultRules returns the rules that end every NSG in one direction, by priority.
func DefaultRules(d core.Direction) []core.SecurityRule {
	rule := func(name string, priority int, access core.Access, source, destination string) core.SecurityRule {
		return core.SecurityRule{
			Name: name, Priority: priority, Direction: d, Access: access, Protocol: core.ProtocolAny,
			Source: []string{source}, Destination: []string{destination},
		}
	}
	if d == core.Inbound {
		return []core.SecurityRule{
			rule("AllowVnetInBound", 65000, core.Allow, TagVirtualNetwork, TagVirtualNetwork),
			rule("AllowLoadBalancerInBound", 65001, core.Allow, TagLoadBalancer, anyAddress),
			rule("DenyAllInBound", 65500, core.Deny, anyAddress, anyAddress),
		}
	}
	return []core.SecurityRule{
		rule("AllowVnetOutBound", 65000, core.Allow, TagVirtualNetwork, TagVirtualNetwork),
		rule("AllowInternetOutBound", 65001, core.Allow, anyAddress, TagInternet),
		rule("DenyAllOutBound", 65500, core.Deny, anyAddress, anyAddress),
	}
}
