package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/sluice-gateway/sluice/internal/core"
)

// EffectiveRoutes lists the routes of a subnet, its table's and the network's own, by
// prefix; of equal prefixes the one that holds is the first.
func EffectiveRoutes(v core.GoalVNet, subnet core.Subnet) []core.EffectiveRoute {
	out := userRoutes(v, subnet)
	declared := map[netip.Prefix]bool{}
	for _, r := range out {
		declared[r.Prefix] = true
	}
	for _, r := range systemRoutes(v, subnet) {
		r.Overridden = declared[r.Prefix]
		out = append(out, r)
	}
	slices.SortStableFunc(out, func(a, b core.EffectiveRoute) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return out
}

func userRoutes(v core.GoalVNet, subnet core.Subnet) []core.EffectiveRoute {
	var out []core.EffectiveRoute
	for _, t := range v.RouteTables {
		if t.Name != subnet.RouteTable {
			continue
		}
		for _, r := range t.Routes {
			e := core.EffectiveRoute{Table: t.Name, Name: r.Name, Prefix: r.Prefix.Masked(), NextHop: r.NextHop}
			e.Through, e.Reason = through(v, subnet, r)
			out = append(out, e)
		}
	}
	return out
}

// through says what a user-defined route leads through, or why it leads nowhere.
func through(v core.GoalVNet, subnet core.Subnet, r core.Route) (via, reason string) {
	switch r.NextHop {
	case core.HopVirtualAppliance:
		return r.Address.String(), noAppliance(v, r)
	case core.HopInternet:
		return subnet.NATGateway, noNAT(v, subnet)
	case core.HopVnetLocal:
		if !within(r.Prefix, v.AddressSpace) {
			return "", fmt.Sprintf("%s is not inside the address space of virtual network %s", r.Prefix, v.Name)
		}
	case core.HopPeering:
		for _, p := range v.Peers {
			if within(r.Prefix, p.AddressSpace) {
				return p.Name, ""
			}
		}
		return "", fmt.Sprintf("%s is not inside a network that %s is connected to", r.Prefix, v.Name)
	case core.HopUplink:
		return uplinkThrough(v, r.Prefix)
	}
	return "", ""
}

// noNAT says why a subnet has no way to the Internet, or "".
func noNAT(v core.GoalVNet, subnet core.Subnet) string {
	switch {
	case subnet.NATGateway == "":
		return fmt.Sprintf("subnet %s names no NAT gateway", subnet.Name)
	case !slices.ContainsFunc(v.NATGateways, func(g core.GoalNATGateway) bool { return g.Name == subnet.NATGateway }):
		return fmt.Sprintf("NAT gateway %s of subnet %s is not known", subnet.NATGateway, subnet.Name)
	}
	return ""
}

// within says that all of a prefix is in one of a list.
func within(p netip.Prefix, list []netip.Prefix) bool {
	return slices.ContainsFunc(list, func(s netip.Prefix) bool { return s.Bits() <= p.Bits() && s.Contains(p.Addr()) })
}

// neverRouted lists what no route leads to, user-defined or not.
func neverRouted() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/4"),
	}
}

// systemRoutes are the network's own for a subnet.
func systemRoutes(v core.GoalVNet, subnet core.Subnet) []core.EffectiveRoute {
	var out []core.EffectiveRoute
	add := func(p netip.Prefix, hop core.NextHop, via, reason string) {
		out = append(out, core.EffectiveRoute{Name: "system", Prefix: p.Masked(), NextHop: hop, Through: via, Reason: reason})
	}
	for _, p := range v.AddressSpace {
		add(p, core.HopVnetLocal, "", "")
	}
	for _, peer := range v.Peers {
		for _, p := range peer.AddressSpace {
			add(p, core.HopPeering, peer.Name, "")
		}
	}
	addUplinks(v, add)
	for _, p := range neverRouted() {
		add(p, core.HopNone, "", "")
	}
	everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if reason := noNAT(v, subnet); reason != "" {
		add(everywhere, core.HopNone, "", reason)
	} else {
		add(everywhere, core.HopInternet, subnet.NATGateway, "")
	}
	return out
}

// deciding finds the route with the longest prefix that an address is in.
func deciding(routes []core.EffectiveRoute, a netip.Addr) (best core.EffectiveRoute, ok bool) {
	for _, r := range routes {
		if !r.Overridden && r.Prefix.Contains(a) && (!ok || r.Prefix.Bits() > best.Prefix.Bits()) {
			best, ok = r, true
		}
	}
	return best, ok
}

// Deciding gives the route of the source's subnet that decides about a flow, which a
// question to the resolver and the tunnel have none of.
func (e *Evaluator) Deciding(f Flow) (core.EffectiveRoute, bool) {
	q := question{Evaluator: e, flow: f}
	from, ok := e.subnetOf(f.Source)
	if !ok || q.kindOf() != ordinary || slices.Contains(e.resolvers, f.Destination) {
		return core.EffectiveRoute{}, false
	}
	return deciding(e.routes[from.Name], f.Destination)
}

// userRoute is what a user-defined route does with the flow; with is false where the
// network's own routes go on to decide.
func (q question) userRoute(from core.Subnet) (route string, with bool) {
	r, ok := deciding(q.routes[from.Name], q.flow.Destination)
	if !ok || r.Table == "" {
		return "", false
	}
	switch {
	case r.Reason != "":
		return fmt.Sprintf("%s%s leads nowhere: %s", routeNone, r, r.Reason), true
	case r.NextHop == core.HopNone:
		return routeNone + r.String(), true
	case r.NextHop == core.HopVirtualAppliance:
		return q.applianceRoute(r), true
	case r.NextHop == core.HopInternet && q.inTag(q.flow.Destination):
		return fmt.Sprintf("%s%s leads to the Internet, and %s is inside the virtual network or a peer", routeNone, r, q.flow.Destination), true
	case r.NextHop == core.HopInternet:
		return q.natRoute(from), true
	}
	return "", false // where the network's own route leads
}

// RouteMark is what members' packets carry from prerouting on where a subnet of their
// network has user-defined routes: the kernel asks these for nothing else.
const RouteMark = 0x5c

// markRouted marks members' packets if there is a subnet's table to ask.
func (c *vnetCompiler) markRouted() {
	for _, s := range c.in.VNet.Subnets {
		if len(CompileRoutes(c.in.VNet, s, nil)) > 0 {
			c.linef(2, "iifname @members meta mark set %#x", RouteMark)
			return
		}
	}
}

// HopKind is what a kernel does with a packet by a route of a subnet's table.
type HopKind int

// The kinds.
const (
	// HopOn asks the network's own routes.
	HopOn HopKind = iota
	HopDrop
	HopNAT  // through the NAT gateway Name
	HopHost // to the address Via on the network of an uplink
)

// TableRoute is one entry of a subnet's routing table, which is asked before the
// network's own.
type TableRoute struct {
	Prefix netip.Prefix
	Kind   HopKind
	Name   string
	Via    netip.Addr
}

// CompileRoutes gives the routing table of a subnet: its user-defined routes, and, where
// a route of the network's own has a longer prefix, a way on to that. It is empty for a
// subnet without a route table. The longest prefix decides; none is there twice.
func CompileRoutes(v core.GoalVNet, subnet core.Subnet, resolvers []netip.Addr) []TableRoute {
	i := slices.IndexFunc(v.RouteTables, func(t core.RouteTable) bool { return t.Name == subnet.RouteTable })
	if subnet.RouteTable == "" || i < 0 || len(v.RouteTables[i].Routes) == 0 {
		return nil
	}
	table := map[netip.Prefix]TableRoute{}
	for _, r := range systemRoutes(v, subnet) {
		if r.Prefix.Bits() > 0 { // the way out is asked last of all anyway
			table[r.Prefix] = TableRoute{Prefix: r.Prefix}
		}
	}
	for _, r := range v.RouteTables[i].Routes {
		table[r.Prefix.Masked()] = compileRoute(v, subnet, r)
	}
	for _, a := range resolvers { // questions to them are the platform's
		p := netip.PrefixFrom(a, a.BitLen())
		table[p] = TableRoute{Prefix: p}
	}
	out := make([]TableRoute, 0, len(table))
	for _, r := range table {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b TableRoute) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return out
}

func compileRoute(v core.GoalVNet, subnet core.Subnet, r core.Route) TableRoute {
	out := TableRoute{Prefix: r.Prefix.Masked(), Kind: HopDrop}
	if _, reason := through(v, subnet, r); reason != "" {
		return out
	}
	switch r.NextHop {
	case core.HopVnetLocal, core.HopPeering, core.HopUplink:
		out.Kind = HopOn
	case core.HopInternet:
		out.Kind, out.Name = HopNAT, subnet.NATGateway
	case core.HopVirtualAppliance:
		out.Kind, out.Via = HopHost, r.Address
	}
	return out
}
