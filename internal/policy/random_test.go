package policy

import (
	"fmt"
	"slices"

	"github.com/sluice-gateway/sluice/internal/core"
)

func (k *conformance) pick(from ...string) string { return from[k.random.IntN(len(from))] }

// flow begins at a member and goes anywhere that a test can tell apart.
func (k *conformance) flow() Flow {
	for {
		f := Flow{
			Source: k.members[k.random.IntN(len(k.members))].Address,
			Destination: addr(k.pick(
				"10.20.0.4", "10.20.0.5", "10.20.1.5", "10.20.2.4", // members
				"10.20.0.4", "10.20.0.5", "10.20.1.5", "10.20.2.4",
				"10.20.1.9", "10.20.1.9", "10.20.2.9", // endpoints
				"10.20.0.2", "10.20.1.2", // resolvers
				"10.20.0.1",                              // a subnet's gateway
				"10.20.0.77", "10.20.2.200", "10.20.9.9", // held by no one
				"198.51.100.7", "203.0.113.9", "10.21.0.1", "169.254.169.254",
			)),
			Protocol:        k.protocol(),
			DestinationPort: []uint16{53, 80, 443, 5432, 5433, 8080}[k.random.IntN(6)],
		}
		if f.Protocol == core.ProtocolAny {
			f.Protocol = core.ProtocolTCP
		}
		if f.Source != f.Destination && !k.tracked(f) {
			return f
		}
	}
}

// tracked reports whether the kernel could take the flow for one of the same round: ESP
// and AH have nothing but addresses to tell flows apart.
func (k *conformance) tracked(f Flow) bool {
	if f.Protocol != core.ProtocolESP && f.Protocol != core.ProtocolAH {
		return false
	}
	ends := []string{f.Source.String(), f.Destination.String()}
	slices.Sort(ends)
	key := fmt.Sprint(f.Protocol, ends)
	known := k.portless[key]
	k.portless[key] = true
	return known
}

func (k *conformance) protocol() core.Protocol {
	return core.Protocol(k.pick("TCP", "TCP", "TCP", "TCP", "UDP", "UDP", "UDP", "Any", "Any", "Any", "ICMP", "ICMP", "ESP", "AH"))
}

// groups gives each subnet an NSG, or none.
func (k *conformance) groups() []core.NetworkSecurityGroup {
	var out []core.NetworkSecurityGroup
	for _, name := range []string{"a", "b", "c"} {
		if k.random.IntN(5) > 0 {
			out = append(out, core.NetworkSecurityGroup{Name: name, Rules: k.rules()})
		}
	}
	return out
}

func (k *conformance) rules() []core.SecurityRule {
	var out []core.SecurityRule
	priorities := k.random.Perm(3997)
	for i := range k.random.IntN(9) {
		out = append(out, core.SecurityRule{
			Name: fmt.Sprintf("r%d", i), Priority: 100 + priorities[i],
			Direction: core.Direction(k.pick("Inbound", "Outbound")), Access: core.Access(k.pick("Allow", "Deny")),
			Protocol: k.protocol(), Source: k.addresses(), Destination: k.addresses(),
			SourcePorts: k.portList("20000-20700", "20500-21535", "1-65535"), DestinationPorts: k.portList("53", "80", "443", "5432", "5000-5999", "1-1024", "8080", "81-52000"),
		})
	}
	return out
}

func (k *conformance) addresses() []string {
	if k.random.IntN(3) == 0 {
		return []string{"Any"}
	}
	var out []string
	for range k.random.IntN(4) {
		out = append(out, k.pick("10.20.0.4", "10.20.0.5", "10.20.1.5", "10.20.2.4", "10.20.1.9", "10.20.0.0/24", "10.20.1.0/24",
			"10.20.0.0/23", "10.20.2.0/25", "10.20.0.7/30", "0.0.0.0/0", "0.0.0.0/1", "198.51.100.0/24", "169.254.0.0/16", "2001:db8::/32",
			"VirtualNetwork", "VirtualNetwork", "Internet", "Internet", "LoadBalancer", "PlatformDNS", "PlatformTunnel"))
	}
	return out
}

func (k *conformance) portList(from ...string) []string {
	if k.random.IntN(2) == 0 {
		return nil
	}
	if k.random.IntN(8) == 0 {
		return []string{"*"}
	}
	var out []string
	for range 1 + k.random.IntN(3) {
		out = append(out, k.pick(from...))
	}
	return out
}
