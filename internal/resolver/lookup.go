package resolver

import (
	"net/netip"
	"slices"

	"github.com/miekg/dns"
	"github.com/sluice-gateway/sluice/internal/core"
)

// Decides gives the DNS name of the zone that decides about a name, without the dot at its end, or "" if
// none does.
func Decides(zones []core.GoalZone, name string) string {
	if z := newZoneSet(zones).find(dns.CanonicalName(name)); z != nil {
		return plainName(z.name)
	}
	return ""
}

// Lookup gives the first IPv4 address that a network's private zones have for a name,
// without asking anybody: false if they have none, or if an alias leads out of them. The
// service uses it to tell what a network's rules mean for a name.
func Lookup(zones []core.GoalZone, name string) (netip.Addr, bool) {
	if all := Addresses(zones, name); len(all) > 0 {
		return all[0], true
	}
	return netip.Addr{}, false
}

// Addresses gives all of them.
func Addresses(zones []core.GoalZone, name string) (all []netip.Addr) {
	set := newZoneSet(zones)
	name = dns.CanonicalName(name)
	var seen []string
	for !slices.Contains(seen, name) && len(seen) <= maxAliases {
		seen = append(seen, name)
		z := set.find(name)
		if z == nil {
			break
		}
		of, _ := z.lookup(name)
		found, alias := of.answer(dns.TypeA)
		for _, rr := range found {
			if a, ok := netip.AddrFromSlice(rr.(*dns.A).A.To4()); ok {
				all = append(all, a)
			}
		}
		if len(found) > 0 || alias == nil {
			break
		}
		name = alias.Target
	}
	return all
}
