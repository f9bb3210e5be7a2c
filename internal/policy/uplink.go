package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// uplinkSpans is everything that the uplinks lead to: with the address space it is the
// tag VirtualNetwork.
func uplinkSpans(v core.GoalVNet) []span {
	var out []span
	for _, u := range v.Uplinks {
		for _, p := range u.Reaches() {
			out = append(out, prefixSpan(p))
		}
	}
	return out
}

func checkUplinks(in VNetInput) *errs.Error {
	for i, u := range in.VNet.Uplinks {
		for _, p := range u.Reaches() {
			if !p.IsValid() || !p.Addr().Is4() {
				return invalid(fmt.Sprintf("uplinks[%d]", i), "uplink %s: %s is not an IPv4 prefix", u.Name, p)
			}
		}
	}
	return nil
}

// uplinks lists, by name, the uplinks that have an interface in the namespace.
func (c *vnetCompiler) uplinks() []core.GoalUplink {
	var out []core.GoalUplink
	for _, u := range c.in.VNet.Uplinks {
		if c.in.UplinkInterfaces[u.Name] != "" && len(c.beyond(u)) > 0 {
			out = append(out, u)
		}
	}
	slices.SortFunc(out, func(a, b core.GoalUplink) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// beyond is what an uplink leads to: never an address of the virtual network's own, which
// a part of an existing network may be.
func (c *vnetCompiler) beyond(u core.GoalUplink) []string {
	var own, far []span
	for _, p := range c.in.VNet.AddressSpace {
		own = append(own, prefixSpan(p))
	}
	for _, p := range u.Reaches() {
		far = append(far, prefixSpan(p))
	}
	outside := merge(append(own, notInternet()...))
	return texts(complement(merge(append(complement(merge(far)), outside...))), span.addressText)
}

// fromUplinks lets in what an uplink may carry: replies from where it leads to.
func (c *vnetCompiler) fromUplinks() {
	for _, u := range c.uplinks() {
		c.linef(2, `iifname %q ip saddr %s counter accept comment "%s"`,
			c.in.UplinkInterfaces[u.Name], oneOf(c.beyond(u)), shorten("in by uplink "+plain(u.Name), maxComment))
	}
}

// toUplinks lets members reach what an uplink leads to.
func (c *vnetCompiler) toUplinks() {
	for _, u := range c.uplinks() {
		c.linef(2, `oifname %q ip daddr %s counter accept comment "%s"`,
			c.in.UplinkInterfaces[u.Name], oneOf(c.beyond(u)), shorten("out by uplink "+plain(u.Name), maxComment))
	}
}

// uplinkOf finds the uplink with the longest prefix that an address is in, one of the
// host of the flow if there is any.
func (e *Evaluator) uplinkOf(a netip.Addr) (found core.GoalUplink, ok bool) {
	longest := -1
	for _, here := range []bool{true, false} {
		for _, u := range e.vnet.Uplinks {
			for _, p := range u.Reaches() {
				if (u.Host == e.host) == here && p.Contains(a) && p.Bits() > longest {
					found, longest = u, p.Bits()
				}
			}
		}
		if longest >= 0 {
			return found, true
		}
	}
	return found, false
}

// inVirtualNetwork says that the tag VirtualNetwork matches an address.
func (e *Evaluator) inVirtualNetwork(a netip.Addr) bool {
	_, far := e.uplinkOf(a)
	return far || e.inSpace(a)
}

// uplinkRoute is the route to an address outside of the network that an uplink leads to.
func (q question) uplinkRoute() (string, bool) {
	dst := q.flow.Destination
	u, ok := q.uplinkOf(dst)
	if q.host != "" && ok && u.Host != q.host {
		return fmt.Sprintf("%suplink %s is one of host %s, the flow begins on host %s", routeNone, u.Name, u.Host, q.host), true
	}
	return "Uplink " + u.Name, ok && unroutable(dst) == ""
}
