package policytest

import (
	"net/netip"
	"slices"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/policy"
)

// Case is rules for the topology, and flows with the decisions that they must meet.
type Case struct {
	Name   string
	Subnet map[string][]core.SecurityRule // an NSG named after the subnet
	NIC    map[string][]core.SecurityRule // by a member's address: an NSG "nic-ADDRESS"
	ASGs   map[string][]string
	Tags   map[string][]string
	Flows  []CaseFlow
}

// CaseFlow is a flow and the decisions about it, in order.
type CaseFlow struct {
	policy.Flow
	Decisions []string
}

// VNet is the topology with the case's rules.
func (c Case) VNet() core.GoalVNet {
	v := Network().VNet
	v.Subnets = slices.Clone(v.Subnets)
	for i := range v.Subnets {
		if rules, ok := c.Subnet[v.Subnets[i].Name]; ok {
			v.Subnets[i].NSG = v.Subnets[i].Name
			v.NSGs = append(v.NSGs, core.NetworkSecurityGroup{Name: v.Subnets[i].Name, Rules: rules})
		}
	}
	for a, rules := range c.NIC {
		v.NSGs = append(v.NSGs, core.NetworkSecurityGroup{Name: "nic-" + a, Rules: rules})
		v.NICs = append(v.NICs, core.GoalNIC{Address: addr(a), Gateway: "g", NSG: "nic-" + a})
	}
	for name, list := range c.ASGs {
		g := core.GoalASG{Name: name}
		for _, a := range list {
			g.Addresses = append(g.Addresses, addr(a))
		}
		v.ASGs = append(v.ASGs, g)
	}
	for name, list := range c.Tags {
		t := core.ServiceTag{Name: name}
		for _, p := range list {
			t.Prefixes = append(t.Prefixes, netip.MustParsePrefix(p))
		}
		v.ServiceTags = append(v.ServiceTags, t)
	}
	return v
}

func flow(from, to string, p core.Protocol, port uint16, decisions ...string) CaseFlow {
	return CaseFlow{policy.Flow{Source: addr(from), Destination: addr(to), Protocol: p, DestinationPort: port}, decisions}
}

// rule is a rule for any protocol, from anywhere to anywhere, but for what change says.
func rule(name string, priority int, d core.Direction, a core.Access, change ...func(*core.SecurityRule)) core.SecurityRule {
	r := core.SecurityRule{Name: name, Priority: priority, Direction: d, Access: a, Protocol: core.ProtocolAny}
	for _, c := range change {
		c(&r)
	}
	return r
}

func from(list ...string) func(*core.SecurityRule) {
	return func(r *core.SecurityRule) { r.Source = list }
}

func to(list ...string) func(*core.SecurityRule) {
	return func(r *core.SecurityRule) { r.Destination = list }
}

func port(list ...string) func(*core.SecurityRule) {
	return func(r *core.SecurityRule) { r.DestinationPorts = list }
}

func over(p core.Protocol) func(*core.SecurityRule) {
	return func(r *core.SecurityRule) { r.Protocol = p }
}

type rules = []core.SecurityRule

// Cases lists the tables.
func Cases() []Case {
	return slices.Concat(orderCases(), addressCases(), portCases(), platformCases())
}

const (
	in, out     = core.Inbound, core.Outbound
	allow, deny = core.Allow, core.Deny
	tcp, udp    = core.ProtocolTCP, core.ProtocolUDP
	icmp        = core.ProtocolICMP
)

// orderCases are about levels and priorities.
func orderCases() []Case {
	return []Case{
		{Name: "no NSG", Flows: []CaseFlow{flow("10.20.0.4", "10.20.1.5", tcp, 22), flow("10.20.0.4", "10.20.0.5", icmp, 0)}},
		{
			Name: "the lower priority number decides",
			Subnet: map[string]rules{"a": {
				rule("later", 300, out, allow), rule("first", 200, out, deny, port("22"), over(tcp)), rule("never", 301, out, deny),
			}},
			Flows: []CaseFlow{
				flow("10.20.0.4", "10.20.1.5", tcp, 22, "denied by rule a/first (200) at subnet a, outbound"),
				flow("10.20.0.4", "10.20.1.5", tcp, 23, "allowed by rule a/later (300) at subnet a, outbound"),
			},
		},
		{
			Name:   "defaults inside one subnet",
			Subnet: map[string]rules{"a": {}},
			Flows: []CaseFlow{
				flow("10.20.0.4", "10.20.0.5", udp, 9, "allowed by rule a/AllowVnetOutBound (65000) at subnet a, outbound", "allowed by rule a/AllowVnetInBound (65000) at subnet a, inbound"),
				flow("10.20.0.4", "198.51.100.7", udp, 9, "allowed by rule a/AllowInternetOutBound (65001) at subnet a, outbound"),
				flow("10.20.0.4", "169.254.169.254", tcp, 80, "denied by rule a/DenyAllOutBound (65500) at subnet a, outbound"),
			},
		},
		{
			Name:   "outbound: the NIC before the subnet, both must allow",
			Subnet: map[string]rules{"a": {rule("s", 100, out, deny, port("443"))}},
			NIC:    map[string]rules{"10.20.0.4": {rule("n", 100, out, deny, port("22", "443"))}},
			Flows: []CaseFlow{
				flow("10.20.0.4", "10.20.1.5", tcp, 22, "denied by rule nic-10.20.0.4/n (100) at the NIC of gateway g, outbound"),
				flow("10.20.0.4", "10.20.1.5", tcp, 443, "denied by rule nic-10.20.0.4/n (100) at the NIC of gateway g, outbound"),
				flow("10.20.0.5", "10.20.1.5", tcp, 443, "denied by rule a/s (100) at subnet a, outbound"),
				flow("10.20.0.4", "10.20.1.5", tcp, 80, "allowed by rule nic-10.20.0.4/AllowVnetOutBound (65000) at the NIC of gateway g, outbound", "allowed by rule a/AllowVnetOutBound (65000) at subnet a, outbound"),
			},
		},
		{
			Name:   "inbound: the subnet before the NIC, both must allow",
			Subnet: map[string]rules{"b": {rule("s", 100, in, deny, port("443"))}},
			NIC:    map[string]rules{"10.20.1.5": {rule("n", 100, in, deny, port("22", "443"))}},
			Flows: []CaseFlow{
				flow("10.20.0.4", "10.20.1.5", tcp, 443, "denied by rule b/s (100) at subnet b, inbound"),
				flow("10.20.0.4", "10.20.1.5", tcp, 22, "allowed by rule b/AllowVnetInBound (65000) at subnet b, inbound", "denied by rule nic-10.20.1.5/n (100) at the NIC of gateway g, inbound"),
				flow("10.20.0.4", "10.20.1.9", tcp, 5432, "allowed by rule b/AllowVnetInBound (65000) at subnet b, inbound"),
			},
		},
	}
}

// addressCases are about what a rule's sources and destinations may be.
func addressCases() []Case {
	return []Case{
		{
			Name:   "several of every sort",
			ASGs:   map[string][]string{"web": {"10.20.0.5", "10.20.1.9"}},
			Tags:   map[string][]string{"Partner": {"203.0.113.0/24"}},
			Subnet: map[string]rules{"a": {rule("mixed", 100, out, deny, to("web", "Partner", "10.20.2.4", "198.51.100.0/28"))}},
			Flows: []CaseFlow{
				flow("10.20.0.4", "10.20.0.5", tcp, 80, "denied by rule a/mixed (100) at subnet a, outbound"),
				flow("10.20.0.4", "10.20.1.9", tcp, 5432, "denied by rule a/mixed (100) at subnet a, outbound"),
				flow("10.20.0.4", "203.0.113.9", udp, 9, "denied by rule a/mixed (100) at subnet a, outbound"),
				flow("10.20.0.4", "10.20.2.4", icmp, 0, "denied by rule a/mixed (100) at subnet a, outbound"),
				flow("10.20.0.4", "198.51.100.7", tcp, 80, "denied by rule a/mixed (100) at subnet a, outbound"),
				flow("10.20.0.4", "198.51.100.16", tcp, 80, "allowed by rule a/AllowInternetOutBound (65001) at subnet a, outbound"),
			},
		},
		{
			Name:   "from a group to a group",
			ASGs:   map[string][]string{"web": {"10.20.0.4"}, "data": {"10.20.1.5", "10.20.2.4"}, "idle": nil},
			Subnet: map[string]rules{"b": {rule("web", 100, in, allow, from("web"), to("data"), port("5432"), over(tcp)), rule("idle", 110, in, allow, from("idle")), rule("rest", 120, in, deny)}},
			Flows: []CaseFlow{
				flow("10.20.0.4", "10.20.1.5", tcp, 5432, "allowed by rule b/web (100) at subnet b, inbound"),
				flow("10.20.0.5", "10.20.1.5", tcp, 5432, "denied by rule b/rest (120) at subnet b, inbound"),
				flow("10.20.0.4", "10.20.1.5", udp, 5432, "denied by rule b/rest (120) at subnet b, inbound"),
				flow("10.20.0.4", "10.20.1.9", tcp, 5432, "denied by rule b/rest (120) at subnet b, inbound"),
			},
		},
	}
}

// portCases are about ports and protocols.
func portCases() []Case {
	return []Case{
		{
			Name: "ports are for TCP and UDP",
			Subnet: map[string]rules{"a": {
				rule("ports", 100, out, deny, port("0-65535")), rule("star", 110, out, deny, port("*"), over(icmp)),
			}},
			Flows: []CaseFlow{
				flow("10.20.0.4", "10.20.1.5", udp, 65535, "denied by rule a/ports (100) at subnet a, outbound"),
				flow("10.20.0.4", "10.20.1.5", icmp, 0, "denied by rule a/star (110) at subnet a, outbound"),
				flow("10.20.0.4", "10.20.1.5", core.ProtocolESP, 0, "allowed by rule a/AllowVnetOutBound (65000) at subnet a, outbound"),
			},
		},
		{
			Name: "the ends of ranges",
			Subnet: map[string]rules{"a": {
				rule("range", 100, out, deny, port("100-200", "201", "65535"), over(tcp)),
			}},
			Flows: []CaseFlow{
				flow("10.20.0.4", "10.20.1.5", tcp, 99, "allowed by rule a/AllowVnetOutBound (65000) at subnet a, outbound"),
				flow("10.20.0.4", "10.20.1.5", tcp, 100, "denied by rule a/range (100) at subnet a, outbound"),
				flow("10.20.0.4", "10.20.1.5", tcp, 201, "denied by rule a/range (100) at subnet a, outbound"),
				flow("10.20.0.4", "10.20.1.5", tcp, 202, "allowed by rule a/AllowVnetOutBound (65000) at subnet a, outbound"),
				flow("10.20.0.4", "10.20.1.5", tcp, 65535, "denied by rule a/range (100) at subnet a, outbound"),
				flow("10.20.0.4", "10.20.1.5", udp, 100, "allowed by rule a/AllowVnetOutBound (65000) at subnet a, outbound"),
			},
		},
		{
			Name: "AH and ESP",
			Subnet: map[string]rules{"a": {
				rule("esp", 100, out, deny, over(core.ProtocolESP)), rule("ah", 110, out, deny, over(core.ProtocolAH)),
			}},
			Flows: []CaseFlow{
				flow("10.20.0.4", "10.20.1.5", core.ProtocolESP, 0, "denied by rule a/esp (100) at subnet a, outbound"),
				flow("10.20.0.4", "10.20.1.5", core.ProtocolAH, 0, "denied by rule a/ah (110) at subnet a, outbound"),
			},
		},
	}
}

// platformCases are about the resolver.
func platformCases() []Case {
	const resolver = "10.20.0.2"
	return []Case{
		{
			Name:   "the resolver is exempt",
			Subnet: map[string]rules{"a": {rule("all", 100, out, deny, to("Any")), rule("in", 100, in, deny)}},
			NIC:    map[string]rules{"10.20.0.4": {rule("all", 100, out, deny)}},
			Flows: []CaseFlow{
				flow("10.20.0.4", resolver, udp, 53), flow("10.20.2.4", resolver, tcp, 53),
				flow("10.20.0.5", resolver, tcp, 80, "denied by rule a/all (100) at subnet a, outbound"),
			},
		},
		{
			Name:   "but for a rule that names it",
			Subnet: map[string]rules{"a": {rule("dns", 100, out, deny, to("PlatformDNS"), over(tcp))}},
			NIC:    map[string]rules{"10.20.0.5": {rule("some", 100, out, allow, to("PlatformDNS", "10.0.0.0/8")), rule("none", 110, out, deny, to("PlatformDNS"))}},
			Flows: []CaseFlow{
				flow("10.20.0.4", resolver, tcp, 53, "denied by rule a/dns (100) at subnet a, outbound"),
				flow("10.20.0.4", resolver, udp, 53),
				flow("10.20.0.5", resolver, udp, 53, "allowed by rule nic-10.20.0.5/some (100) at the NIC of gateway g, outbound"),
				flow("10.20.0.5", resolver, tcp, 53, "allowed by rule nic-10.20.0.5/some (100) at the NIC of gateway g, outbound", "denied by rule a/dns (100) at subnet a, outbound"),
			},
		},
	}
}
