package placement

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// resolveGroups gives a virtual network the application security groups and service tags
// that its NSGs name, and the interfaces of members that have an NSG of their own.
func resolveGroups(v *core.GoalVNet, set []core.Stored, members []core.Member) {
	named := map[string]bool{}
	for _, n := range v.NSGs {
		for _, r := range n.Rules {
			for _, entry := range slices.Concat(r.Source, r.Destination) {
				named[entry] = true
			}
		}
	}
	gateways := map[string]*core.Gateway{}
	for _, r := range set {
		switch spec := r.Spec.(type) {
		case *core.ApplicationSecurityGroup:
			if named[spec.Name] {
				v.ASGs = append(v.ASGs, core.GoalASG{Name: spec.Name})
			}
		case *core.ServiceTag:
			if named[spec.Name] {
				v.ServiceTags = append(v.ServiceTags, *spec)
			}
		case *core.Gateway:
			gateways[spec.Name] = spec
		}
	}
	for _, m := range members {
		if m.VNetUID == v.UID && Runs(m.State) && m.Address.IsValid() && gateways[m.Gateway] != nil {
			AddMember(v, gateways[m.Gateway], m.Address)
		}
	}
	for _, r := range set {
		if e, ok := r.Spec.(*core.PrivateEndpoint); ok && e.VNet == v.Name {
			joinGroups(v, e.ApplicationSecurityGroups, e.Address)
		}
	}
}

// AddMember notes what holds for the address of one of a gateway's members. Doing it
// twice changes nothing more.
func AddMember(v *core.GoalVNet, g *core.Gateway, a netip.Addr) {
	joinGroups(v, g.ApplicationSecurityGroups, a)
	if g.NetworkSecurityGroup == "" || slices.ContainsFunc(v.NICs, func(n core.GoalNIC) bool { return n.Address == a }) {
		return
	}
	v.NICs = append(v.NICs, core.GoalNIC{Address: a, Gateway: g.Name, NSG: g.NetworkSecurityGroup})
	slices.SortFunc(v.NICs, func(x, y core.GoalNIC) int { return x.Address.Compare(y.Address) })
}

// joinGroups adds an address to those of the groups that the network's rules name.
func joinGroups(v *core.GoalVNet, groups []string, a netip.Addr) {
	for _, name := range groups {
		i := slices.IndexFunc(v.ASGs, func(g core.GoalASG) bool { return g.Name == name })
		if i < 0 || !a.IsValid() {
			continue
		}
		at, held := slices.BinarySearchFunc(v.ASGs[i].Addresses, a, netip.Addr.Compare)
		if !held {
			v.ASGs[i].Addresses = slices.Insert(v.ASGs[i].Addresses, at, a)
		}
	}
	slices.SortFunc(v.ASGs, func(x, y core.GoalASG) int { return strings.Compare(x.Name, y.Name) })
}

// nicsHere leaves out the interfaces of members that run elsewhere: an NSG of an interface's
// own is enforced where that is.
func nicsHere(v core.GoalVNet, here []core.GoalMember) core.GoalVNet {
	local := map[netip.Addr]bool{}
	for _, m := range here {
		if m.VNetUID == v.UID {
			local[m.Address] = true
		}
	}
	v.NICs = slices.DeleteFunc(v.NICs, func(n core.GoalNIC) bool { return !local[n.Address] })
	return v
}
