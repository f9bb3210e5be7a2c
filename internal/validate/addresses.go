package validate

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// AssignAddresses gives each endpoint without an address the lowest free one of its
// subnet, endpoint by endpoint in the order of their names, so that the order of the
// set does not count. An address that another endpoint has, or that taken (nil for
// none) reports, is not free. What Set would refuse is passed over. An error, of the
// class Exhausted, says that a subnet is full.
func AssignAddresses(resources []core.Resource, taken func(vnet string, a netip.Addr) bool) []*errs.Error {
	s := newSet(resources)
	used := map[string]map[netip.Addr]bool{} // by network
	var without []*core.PrivateEndpoint
	for _, e := range all[*core.PrivateEndpoint](s) {
		if used[e.VNet] == nil {
			used[e.VNet] = map[netip.Addr]bool{}
		}
		if e.Address.IsValid() {
			used[e.VNet][e.Address] = true
		} else {
			without = append(without, e)
		}
	}
	slices.SortFunc(without, func(a, b *core.PrivateEndpoint) int { return strings.Compare(a.Name, b.Name) })
	var problems []*errs.Error
	for _, e := range without {
		sn, ok := s.subnet(e.VNet, e.Subnet)
		if !ok {
			continue // refused by Set
		}
		a, ok := firstFree(sn.Prefix, func(a netip.Addr) bool {
			return used[e.VNet][a] || (taken != nil && taken(e.VNet, a))
		})
		if !ok {
			problems = append(problems, errs.New(errs.Exhausted, "subnet %q (%s) has no free address", sn.Name, sn.Prefix).
				On(objectOf(e), "address").WithHint("use a larger subnet, or delete endpoints of this one"))
			continue
		}
		e.Address = a
		used[e.VNet][a] = true
	}
	return problems
}

// firstFree returns the lowest address of a subnet that is neither reserved nor taken.
func firstFree(subnet netip.Prefix, taken func(netip.Addr) bool) (netip.Addr, bool) {
	if !subnet.IsValid() {
		return netip.Addr{}, false
	}
	for a := subnet.Masked().Addr(); subnet.Contains(a); a = a.Next() {
		if !Reserved(subnet, a) && !taken(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}
