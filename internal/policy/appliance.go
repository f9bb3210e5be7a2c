package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/sluice-gateway/sluice/internal/core"
)

// HasAppliance says that an appliance can be at an address: on the network that an uplink
// is on. What a virtual network holds itself, members and private endpoints, forwards
// nothing.
func HasAppliance(v core.GoalVNet, u core.Uplink, a netip.Addr) bool {
	return u.TUN == "" && u.Addressing.Network.IsValid() && u.Addressing.Network.Contains(a) && a != u.Addressing.Address &&
		!slices.ContainsFunc(v.AddressSpace, func(p netip.Prefix) bool { return p.Contains(a) })
}

// noAppliance says why a route to an appliance leads nowhere, or "".
func noAppliance(v core.GoalVNet, r core.Route) string {
	if !slices.ContainsFunc(v.Uplinks, func(u core.GoalUplink) bool { return HasAppliance(v, u.Uplink, r.Address) }) {
		return fmt.Sprintf("%s is on no network of an uplink of virtual network %s", r.Address, v.Name)
	}
	inside := slices.Clone(v.AddressSpace)
	for _, p := range v.Peers {
		inside = append(inside, p.AddressSpace...)
	}
	if within(r.Prefix, inside) {
		return fmt.Sprintf("%s is inside virtual network %s or a peer, and an appliance behind an uplink is outside", r.Prefix, v.Name)
	}
	return ""
}

// applianceRoute leads to an appliance behind an uplink, one of the host of the flow.
func (q question) applianceRoute(r core.EffectiveRoute) string {
	a, err := netip.ParseAddr(r.Through)
	if err != nil {
		return fmt.Sprintf("%s%s: %q is not an address", routeNone, r, r.Through)
	}
	elsewhere := ""
	for _, u := range q.vnet.Uplinks {
		switch {
		case !HasAppliance(q.vnet, u.Uplink, a):
		case q.host == "" || u.Host == q.host:
			return "VirtualAppliance " + r.Through
		default:
			elsewhere = fmt.Sprintf("%s%s: uplink %s is one of host %s, the flow begins on host %s", routeNone, r, u.Name, u.Host, q.host)
		}
	}
	return elsewhere
}

// applianceWay is what the kernel carries for a route to an appliance.
type applianceWay struct {
	subnet, link, appliance string
	prefixes                []string
}

// applianceWays lists those of the uplinks that have an interface. What the virtual network
// and its peers have is not among the prefixes, however wide the route.
func (c *vnetCompiler) applianceWays() []applianceWay {
	own := notInternet()
	for _, p := range c.in.VNet.AddressSpace {
		own = append(own, prefixSpan(p))
	}
	own = append(own, peerSpans(c.in.VNet)...)
	var out []applianceWay
	for _, s := range c.in.VNet.Subnets {
		for _, r := range CompileRoutes(c.in.VNet, s, c.in.Resolvers) {
			outside := texts(complement(merge(append(complement([]span{prefixSpan(r.Prefix)}), own...))), span.addressText)
			if r.Kind != HopHost || len(outside) == 0 {
				continue
			}
			for _, u := range c.uplinks() {
				if HasAppliance(c.in.VNet, u.Uplink, r.Via) {
					out = append(out, applianceWay{s.Prefix.Masked().String(), c.in.UplinkInterfaces[u.Name], r.Via.String(), outside})
				}
			}
		}
	}
	slices.SortStableFunc(out, func(a, b applianceWay) int {
		return slices.Compare([]string{a.subnet, a.appliance}, []string{b.subnet, b.appliance})
	})
	return out
}

// fromAppliances lets in replies by way of an appliance. They carry the mark of members'
// packets: the kernel then looks for their source's way back where members' packets go.
func (c *vnetCompiler) fromAppliances() {
	for _, w := range c.applianceWays() {
		c.linef(2, `iifname %q ip saddr %s ip daddr %s meta mark set %#x counter accept comment "from appliance %s"`, w.link, oneOf(w.prefixes), w.subnet, RouteMark, w.appliance)
	}
}

// toAppliances lets members' packets reach the appliance that a route sends them to,
// whoever they are for.
func (c *vnetCompiler) toAppliances() {
	for _, w := range c.applianceWays() {
		c.linef(2, `oifname %q ip saddr %s ip daddr %s counter accept comment "to appliance %s"`, w.link, w.subnet, oneOf(w.prefixes), w.appliance)
	}
}
