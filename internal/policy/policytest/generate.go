package policytest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/policy"
)

// Generator makes rule sets and flows in which rules meet flows often.
type Generator struct {
	random   *rand.Rand
	net      Topology
	maxRules int
	port     uint16
}

// NewGenerator returns one that repeats itself for the same seed. An NSG has at most
// maxRules rules; 0 means 8.
func NewGenerator(seed uint64, maxRules int) *Generator {
	if maxRules == 0 {
		maxRules = 8
	}
	return &Generator{random: rand.New(rand.NewPCG(seed, 26)), net: Network(), maxRules: maxRules} // repeatable is the point
}

func (g *Generator) pick(from ...string) string { return from[g.random.IntN(len(from))] }

// VNet is the topology with random rules: an NSG for most subnets and for some members,
// groups of random members and endpoints, and tags.
func (g *Generator) VNet() core.GoalVNet {
	v := g.net.VNet
	v.Subnets = slices.Clone(v.Subnets)
	v.ASGs = []core.GoalASG{
		{Name: "web", Addresses: g.holders()}, {Name: "data", Addresses: g.holders()}, {Name: "idle"},
	}
	v.ServiceTags = []core.ServiceTag{
		{Name: "OnPremises", Prefixes: []netip.Prefix{prefix("198.51.100.0/24"), prefix("10.20.1.0/24"), prefix("203.0.113.8/31")}},
		{Name: "Partner", Prefixes: []netip.Prefix{prefix("10.21.0.0/16"), prefix("2001:db8::/32")}},
	}
	for i := range v.Subnets {
		if g.random.IntN(5) > 0 {
			v.Subnets[i].NSG = v.Subnets[i].Name
			v.NSGs = append(v.NSGs, core.NetworkSecurityGroup{Name: v.Subnets[i].Name, Rules: g.rules()})
		}
	}
	v.NSGs = append(v.NSGs, core.NetworkSecurityGroup{Name: "nic", Rules: g.rules()})
	for i, m := range g.net.Members {
		if g.random.IntN(3) == 0 {
			v.NICs = append(v.NICs, core.GoalNIC{Address: m.Address, Gateway: fmt.Sprintf("g%d", i), NSG: g.pick("nic", v.NSGs[0].Name)})
		}
	}
	return v
}

// holders picks some of the addresses that groups can have.
func (g *Generator) holders() []netip.Addr {
	var out []netip.Addr
	for _, m := range g.net.Members {
		if g.random.IntN(3) == 0 {
			out = append(out, m.Address)
		}
	}
	for _, a := range []string{"10.20.1.9", "10.20.2.9"} {
		if g.random.IntN(3) == 0 {
			out = append(out, addr(a))
		}
	}
	return out
}

// Flow begins at a member, goes anywhere that a fabric can tell apart, and is none that
// one could take for one of those before: each has a source port of its own, and ESP and
// AH, which have nothing but addresses, come once for a pair.
func (g *Generator) Flow(before []policy.Flow) policy.Flow {
	for {
		f := policy.Flow{
			Source:          g.net.Members[g.random.IntN(len(g.net.Members))].Address,
			Destination:     addr(g.destination()),
			Protocol:        g.protocol(),
			DestinationPort: g.destinationPort(),
		}
		if f.Protocol == core.ProtocolAny {
			f.Protocol = core.ProtocolTCP
		}
		if f.Source == f.Destination || slices.ContainsFunc(before, func(o policy.Flow) bool { return alike(f, o) }) {
			continue
		}
		f.SourcePort = 20000 + g.port%20000
		g.port++
		return f
	}
}

func (g *Generator) destination() string {
	return g.pick(
		"10.20.0.4", "10.20.0.5", "10.20.1.5", "10.20.2.4", // members
		"10.20.0.4", "10.20.0.5", "10.20.1.5", "10.20.2.4",
		"10.20.1.9", "10.20.1.9", "10.20.2.9", // endpoints
		"10.20.0.2", "10.20.1.2", // resolvers
		"10.20.0.1",                              // a subnet's gateway
		"10.20.0.77", "10.20.2.200", "10.20.9.9", // held by no one
		"198.51.100.7", "203.0.113.9", "10.21.0.1", "169.254.169.254",
	)
}

func (g *Generator) destinationPort() uint16 {
	if g.random.IntN(4) == 0 {
		return uint16(1 + g.random.IntN(65535))
	}
	return []uint16{53, 80, 443, 5432, 5433, 8080}[g.random.IntN(6)]
}

func alike(f, o policy.Flow) bool {
	if f.Protocol != o.Protocol || f.Protocol != core.ProtocolESP && f.Protocol != core.ProtocolAH {
		return false
	}
	return f.Source == o.Source && f.Destination == o.Destination || f.Source == o.Destination && f.Destination == o.Source
}

func (g *Generator) protocol() core.Protocol {
	return core.Protocol(g.pick("TCP", "TCP", "TCP", "TCP", "UDP", "UDP", "UDP", "Any", "Any", "Any", "ICMP", "ICMP", "ESP", "AH"))
}

func (g *Generator) rules() []core.SecurityRule {
	var out []core.SecurityRule
	priorities := g.random.Perm(3997)
	for i := range g.random.IntN(g.maxRules + 1) {
		out = append(out, core.SecurityRule{
			Name: fmt.Sprintf("r%d", i), Priority: 100 + priorities[i],
			Direction: core.Direction(g.pick("Inbound", "Outbound")), Access: core.Access(g.pick("Allow", "Deny")),
			Protocol: g.protocol(), Source: g.addresses(), Destination: g.addresses(),
			SourcePorts:      g.ports("20000-29999", "25000-35535", "1-65535"),
			DestinationPorts: g.ports("53", "80", "443", "5432", "5000-5999", "1-1024", "8080", "81-52000", "0", "65535", "40000-65535"),
		})
	}
	return out
}

func (g *Generator) addresses() []string {
	if g.random.IntN(3) == 0 {
		return []string{"Any"}
	}
	var out []string
	for range g.random.IntN(4) {
		out = append(out, g.pick("10.20.0.4", "10.20.0.5", "10.20.1.5", "10.20.2.4", "10.20.1.9", "10.20.0.0/24", "10.20.1.0/24",
			"10.20.0.0/23", "10.20.2.0/25", "10.20.0.7/30", "0.0.0.0/0", "0.0.0.0/1", "198.51.100.0/24", "169.254.0.0/16", "2001:db8::/32",
			"VirtualNetwork", "VirtualNetwork", "Internet", "Internet", "LoadBalancer", "PlatformDNS", "PlatformTunnel",
			"web", "web", "data", "data", "idle", "OnPremises", "OnPremises", "Partner"))
	}
	if g.random.IntN(12) == 0 {
		for i := range 12 { // more than a rule holds itself
			out = append(out, fmt.Sprintf("10.20.%d.%d", i%3, 4+i/2*2))
		}
	}
	return out
}

func (g *Generator) ports(from ...string) []string {
	if g.random.IntN(2) == 0 {
		return nil
	}
	if g.random.IntN(8) == 0 {
		return []string{"*"}
	}
	var out []string
	for range 1 + g.random.IntN(3) {
		out = append(out, g.pick(from...))
	}
	if g.random.IntN(2) == 0 {
		lo := g.random.IntN(65536)
		out = append(out, fmt.Sprintf("%d-%d", lo, min(lo+g.random.IntN(9000), 65535)))
	}
	return out
}
