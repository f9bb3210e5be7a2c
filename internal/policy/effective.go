package policy

import (
	"net/netip"
	"slices"

	"github.com/sluice-gateway/sluice/internal/core"
)

// EffectiveRules lists the rules that are asked about an address of a subnet, in the order
// in which they are: outbound the NIC's NSG, then the subnet's; inbound the other way
// round. It is empty where no NSG applies, which allows everything. A NIC's NSG is known
// where the virtual network lists the address.
func EffectiveRules(v core.GoalVNet, subnet core.Subnet, a netip.Addr) []core.EffectiveRule {
	nic := ""
	for _, n := range v.NICs {
		if n.Address == a {
			nic = n.NSG
		}
	}
	out := []core.EffectiveRule{}
	add := func(nsg string, level core.RuleLevel, d core.Direction) {
		i := slices.IndexFunc(v.NSGs, func(g core.NetworkSecurityGroup) bool { return g.Name == nsg })
		if nsg == "" || i < 0 {
			return
		}
		for _, r := range ordered(v.NSGs[i], d) {
			out = append(out, effectiveRule(v, nsg, level, r))
		}
	}
	add(nic, core.LevelNIC, core.Outbound)
	add(subnet.NSG, core.LevelSubnet, core.Outbound)
	add(subnet.NSG, core.LevelSubnet, core.Inbound)
	add(nic, core.LevelNIC, core.Inbound)
	return out
}

func effectiveRule(v core.GoalVNet, nsg string, level core.RuleLevel, r core.SecurityRule) core.EffectiveRule {
	return core.EffectiveRule{
		Level: level, NSG: nsg, Name: r.Name, Priority: r.Priority, Default: r.Priority >= firstDefault,
		Direction: r.Direction, Access: r.Access, Protocol: r.Protocol,
		Source: orAll(r.Source, anyAddress), SourcePorts: orAll(r.SourcePorts, anyPort),
		Destination: orAll(r.Destination, anyAddress), DestinationPorts: orAll(r.DestinationPorts, anyPort),
		SourcePrefixes: standsFor(v, r.Source), DestinationPrefixes: standsFor(v, r.Destination),
	}
}

// firstDefault is the lowest priority of a default rule, beyond those of declared ones.
const firstDefault = 65000

func orAll(list []string, all string) []string {
	if len(list) == 0 || slices.Contains(list, all) {
		return []string{all}
	}
	return list
}

// standsFor lists what the groups and tags among the entries mean, if there is one.
func standsFor(v core.GoalVNet, entries []string) []netip.Prefix {
	var out []netip.Prefix
	for _, entry := range entries {
		if entry == TagVirtualNetwork {
			out = append(out, virtualNetwork(v)...)
		}
		for _, g := range v.ASGs {
			if g.Name == entry {
				for _, a := range g.Addresses {
					out = append(out, netip.PrefixFrom(a, a.BitLen()))
				}
			}
		}
		for _, t := range v.ServiceTags {
			if t.Name == entry {
				out = append(out, t.Prefixes...)
			}
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// virtualNetwork is what the tag of that name matches.
func virtualNetwork(v core.GoalVNet) []netip.Prefix {
	out := slices.Clone(v.AddressSpace)
	for _, p := range v.Peers {
		out = append(out, p.AddressSpace...)
	}
	for _, u := range v.Uplinks {
		out = append(out, u.Reaches()...)
	}
	return out
}
