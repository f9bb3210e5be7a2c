package validate

import (
	"net/netip"

	"github.com/sluice-gateway/sluice/internal/core"
)

const (
	maxRoutes   = 400 // of one table
	maxPeerings = 100 // of one network
)

func (c *checker) routeTable(t *core.RouteTable) {
	c.label("name", t.Name)
	if len(t.Routes) > maxRoutes {
		c.bad("routes", "has %d routes: at most %d are possible", len(t.Routes), maxRoutes)
		return
	}
	for i, r := range t.Routes {
		field := at("routes", i)
		c.label(field+".name", r.Name)
		for j, other := range t.Routes[:i] {
			if other.Name == r.Name && r.Name != "" {
				c.bad(field+".name", "another route of this table is named %q", r.Name)
			}
			if other.Prefix == r.Prefix && r.Prefix.IsValid() {
				c.bad(field+".prefix", "route %q (%s) has the prefix %s already", other.Name, at("routes", j), r.Prefix)
			}
		}
		c.route(field, r)
	}
}

func (c *checker) route(field string, r core.Route) {
	if c.prefix(field+".prefix", r.Prefix) {
		for what, special := range notUnicast() {
			if contains(special, r.Prefix) {
				c.bad(field+".prefix", "%s lies in what is never routed: %s", r.Prefix, what)
			}
		}
	}
	oneOf(c, field+".nextHop", r.NextHop, core.NextHops()...)
	switch appliance := r.NextHop == core.HopVirtualAppliance; {
	case appliance && !r.Address.Is4():
		c.bad(field+".address", "is missing: the IPv4 address of the appliance")
	case !appliance && r.Address.IsValid():
		c.bad(field+".address", "belongs to the next hop %s only", core.HopVirtualAppliance)
	}
}

// subnetRoutes refuses what a route table can't mean in a subnet of this network.
func (c *checker) subnetRoutes(v *core.VirtualNetwork, i int) {
	table, ok := get[*core.RouteTable](c.set, core.KindRouteTable, v.Subnets[i].RouteTable)
	if !ok {
		return
	}
	field := at("subnets", i) + ".routeTable"
	for _, r := range table.Routes {
		switch r.NextHop {
		case core.HopInternet:
			for _, p := range v.AddressSpace {
				if r.Prefix.IsValid() && contains(p, r.Prefix) {
					c.bad(field, "route %q of %s sends %s to the Internet, which is inside the address space %s", r.Name, objectOf(table), r.Prefix, p)
				}
			}
		case core.HopVirtualAppliance:
			if why := c.noAppliance(v, r); why != "" {
				c.bad(field, "route %q of %s: %s", r.Name, objectOf(table), why)
			}
		}
	}
}

// noAppliance says why a route can't lead to its appliance, or "".
func (c *checker) noAppliance(v *core.VirtualNetwork, r core.Route) string {
	a := r.Address
	if !a.Is4() || !r.Prefix.IsValid() {
		return "" // the table's own problem
	}
	for _, p := range v.AddressSpace {
		switch {
		case p.IsValid() && p.Contains(a):
			return "the appliance " + a.String() + " is inside " + objectOf(v) + ", where members and private endpoints are, which forward nothing: an appliance is on the network of an uplink"
		case p.IsValid() && contains(p, r.Prefix):
			return "the appliance " + a.String() + " is outside of " + objectOf(v) + ", and " + r.Prefix.String() + " is inside"
		}
	}
	for _, u := range v.Uplinks {
		if n := u.Addressing.Network; u.TUN == "" && n.IsValid() && n.Contains(a) && u.Addressing.Address != a {
			return ""
		}
	}
	return "the appliance " + a.String() + " is on no network of an uplink of " + objectOf(v)
}

// peerings refuses networks that could not tell each other's addresses apart.
func (c *checker) peerings(v *core.VirtualNetwork) {
	if len(v.Peerings) > maxPeerings {
		c.bad("peerings", "has %d peerings: at most %d are possible", len(v.Peerings), maxPeerings)
		return
	}
	for i, p := range v.Peerings {
		field := at("peerings", i)
		c.label(field+".name", p.Name)
		if p.Remote == v.Name {
			c.bad(field+".remote", "is this network itself")
			continue
		}
		for _, other := range v.Peerings[:i] {
			if other.Name == p.Name && p.Name != "" {
				c.bad(field+".name", "another peering of this network is named %q", p.Name)
			}
			if other.Remote == p.Remote {
				c.bad(field+".remote", "peering %q names %s already", other.Name, p.Remote)
			} else {
				c.peersApart(field+".remote", v, p.Remote, other.Remote)
			}
		}
		c.apart(field+".remote", v.Name, p.Remote)
		c.uplinksOfPeers(field+".remote", v, p.Remote)
	}
}

// peersApart refuses two peers of a network with the same addresses.
func (c *checker) peersApart(field string, v *core.VirtualNetwork, a, b string) {
	if a != v.Name && b != v.Name {
		c.apart(field, a, b)
	}
}

func (c *checker) apart(field, first, second string) {
	a, okA := get[*core.VirtualNetwork](c.set, core.KindVirtualNetwork, first)
	b, okB := get[*core.VirtualNetwork](c.set, core.KindVirtualNetwork, second)
	if !okA || !okB {
		return // the reference is refused already
	}
	c.overlapping(field, held(a), held(b))
}

// uplinksOfPeers refuses two networks of which one has behind an uplink what the other
// has, itself or behind an uplink of its own. It says nothing about their own addresses.
func (c *checker) uplinksOfPeers(field string, v *core.VirtualNetwork, name string) {
	remote, ok := get[*core.VirtualNetwork](c.set, core.KindVirtualNetwork, name)
	if !ok {
		return // the reference is refused already
	}
	ours, theirs := behindUplinks(v), behindUplinks(remote)
	if !c.overlapping(field, ours, append(held(remote), theirs...)) {
		c.overlapping(field, held(v), theirs)
	}
}

// whose is a prefix and what it belongs to.
type whose struct {
	prefix netip.Prefix
	object string
}

// held lists what a network itself has.
func held(v *core.VirtualNetwork) []whose {
	var out []whose
	for _, p := range v.AddressSpace {
		out = append(out, whose{p, objectOf(v)})
	}
	return out
}

// behindUplinks lists what a network reaches by its uplinks.
func behindUplinks(v *core.VirtualNetwork) []whose {
	var out []whose
	for _, u := range v.Uplinks {
		for _, p := range u.Reaches() {
			out = append(out, whose{p, "uplink " + u.Name + " of " + objectOf(v)})
		}
	}
	return out
}

func (c *checker) overlapping(field string, first, second []whose) bool {
	for _, p := range first {
		for _, q := range second {
			if p.prefix.IsValid() && q.prefix.IsValid() && p.prefix.Overlaps(q.prefix) {
				c.bad(field, "%s of %s overlaps %s of %s: within a network and its peers no addresses may overlap", p.prefix, p.object, q.prefix, q.object)
				return true
			}
		}
	}
	return false
}
