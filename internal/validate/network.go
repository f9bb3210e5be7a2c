package validate

import (
	"net/netip"
	"slices"

	"github.com/sluice-gateway/sluice/internal/core"
)

// smallestSubnet is the longest prefix of a subnet: a /29 has three usable addresses.
const smallestSubnet = 29

// notUnicast lists what no private network can use, and why.
func notUnicast() map[string]netip.Prefix {
	return map[string]netip.Prefix{
		"this host (0.0.0.0/8)":             netip.MustParsePrefix("0.0.0.0/8"),
		"loopback (127.0.0.0/8)":            netip.MustParsePrefix("127.0.0.0/8"),
		"the tunnels (169.254.0.0/16)":      netip.MustParsePrefix("169.254.0.0/16"),
		"multicast and above (224.0.0.0/3)": netip.MustParsePrefix("224.0.0.0/3"),
	}
}

// unusable says what a prefix runs into, or "".
func unusable(p netip.Prefix) string {
	var found []string
	for what, r := range notUnicast() {
		if r.Overlaps(p) {
			found = append(found, what)
		}
	}
	if len(found) == 0 {
		return ""
	}
	return slices.Min(found)
}

// prefix reports whether p is an IPv4 prefix in its canonical form.
func (c *checker) prefix(field string, p netip.Prefix) bool {
	switch {
	case !p.IsValid():
		c.bad(field, "is missing: a prefix such as 10.20.0.0/16")
	case !p.Addr().Is4():
		c.bad(field, "%s is not IPv4: virtual networks are IPv4 only", p)
	case p.Masked() != p:
		c.bad(field, "%s has host bits set", p).WithHint("write %s", p.Masked())
	default:
		return true
	}
	return false
}

func (c *checker) vnet(v *core.VirtualNetwork) {
	c.label("name", v.Name)
	if len(v.AddressSpace) == 0 {
		c.bad("addressSpace", "is missing: at least one prefix such as 10.20.0.0/16")
	}
	var space []netip.Prefix
	for i, p := range v.AddressSpace {
		field := at("addressSpace", i)
		if !c.prefix(field, p) {
			continue
		}
		if what := unusable(p); what != "" {
			c.bad(field, "%s overlaps %s", p, what)
		}
		for _, other := range space {
			if other.Overlaps(p) {
				c.bad(field, "%s overlaps %s in the same address space", p, other)
			}
		}
		space = append(space, p)
	}
	for i := range v.Subnets {
		c.subnetOf(v, i)
		c.subnetRoutes(v, i)
	}
	c.peerings(v)
	c.uplinks(v)
	c.vnetDNS(v)
}

func (c *checker) subnetOf(v *core.VirtualNetwork, i int) {
	s, field := v.Subnets[i], at("subnets", i)
	c.label(field+".name", s.Name)
	if s.Delegation != "" && !delegationForm.MatchString(s.Delegation) {
		c.bad(field+".delegation", "%q is not a delegation such as %s", s.Delegation, core.DelegationGateways)
	}
	for _, other := range v.Subnets[:i] {
		if other.Name == s.Name && s.Name != "" {
			c.bad(field+".name", "another subnet of this network is named %q", s.Name)
		}
	}
	if !c.prefix(field+".prefix", s.Prefix) {
		return
	}
	if s.Prefix.Bits() > smallestSubnet {
		c.bad(field+".prefix", "%s is too small: five addresses of a subnet are reserved, the smallest is a /%d", s.Prefix, smallestSubnet)
	}
	if !slices.ContainsFunc(v.AddressSpace, func(p netip.Prefix) bool { return contains(p, s.Prefix) }) {
		c.bad(field+".prefix", "%s is not inside the address space %s", s.Prefix, list(v.AddressSpace))
	}
	for j, other := range v.Subnets[:i] {
		if other.Prefix.IsValid() && other.Prefix.Overlaps(s.Prefix) {
			c.bad(field+".prefix", "%s overlaps %s of subnet %q (%s)", s.Prefix, other.Prefix, other.Name, at("subnets", j))
		}
	}
}

// contains reports whether the whole of inner is inside outer.
func contains(outer, inner netip.Prefix) bool {
	return outer.IsValid() && outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// Reserved reports whether an address of a subnet belongs to the platform: network,
// gateway, two for DNS, and the last.
func Reserved(subnet netip.Prefix, a netip.Addr) bool {
	first := subnet.Masked().Addr()
	for range 4 {
		if a == first {
			return true
		}
		first = first.Next()
	}
	return subnet.Contains(a) && !subnet.Contains(a.Next())
}
