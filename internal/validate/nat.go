package validate

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

const (
	maxPublicAddresses = 16
	minIdleTimeout     = core.Duration(4 * time.Minute)
	maxIdleTimeout     = core.Duration(120 * time.Minute)
	hostWord           = "host"
)

func (c *checker) nat(n *core.NATGateway) {
	c.label("name", n.Name)
	if n.IdleTimeout < minIdleTimeout || n.IdleTimeout > maxIdleTimeout {
		c.bad("idleTimeout", "%s is not from 4m to 120m", n.IdleTimeout)
	} else if time.Duration(n.IdleTimeout)%time.Second != 0 {
		c.bad("idleTimeout", "%s is not a number of whole seconds", n.IdleTimeout)
	}
	switch {
	case len(n.PublicAddresses) == 0:
		c.bad("publicAddresses", `is missing: "host", or addresses and prefixes that are routed to the host`)
		return
	case slices.Contains(n.PublicAddresses, hostWord):
		if len(n.PublicAddresses) > 1 {
			c.bad("publicAddresses", `"host" can't stand beside addresses: traffic leaves either as the host or as them`)
		}
		return
	}
	count, seen := 0, []netip.Prefix{}
	for i, a := range n.PublicAddresses {
		p, ok := c.publicAddress(at("publicAddresses", i), a)
		if !ok {
			continue
		}
		c.disjoint(at("publicAddresses", i), n.VNet, p, seen)
		c.unshared(at("publicAddresses", i), n, p)
		seen = append(seen, p)
		count += 1 << min(32-p.Bits(), 10) // capped: past the limit anyway
	}
	if count > maxPublicAddresses {
		c.bad("publicAddresses", "has more than %d addresses", maxPublicAddresses)
	}
}

// unshared refuses what another NAT gateway, named earlier in the alphabet, leaves as:
// replies could reach one of them only.
func (c *checker) unshared(field string, n *core.NATGateway, p netip.Prefix) {
	for _, other := range all[*core.NATGateway](c.set) {
		if other.Name >= n.Name {
			continue
		}
		for _, a := range other.PublicAddresses {
			if q, ok := prefixOf(a); ok && q.Overlaps(p) {
				c.bad(field, "%s overlaps %s of %s: replies find one NAT gateway only", p, a, objectOf(other))
			}
		}
	}
}

// prefixOf reads an address or a prefix.
func prefixOf(a string) (netip.Prefix, bool) {
	if !strings.Contains(a, "/") {
		addr, err := netip.ParseAddr(a)
		return netip.PrefixFrom(addr, addr.BitLen()), err == nil
	}
	p, err := netip.ParsePrefix(a)
	return p, err == nil
}

// publicAddress reads an address or a prefix.
func (c *checker) publicAddress(field, a string) (netip.Prefix, bool) {
	p, ok := prefixOf(a)
	if !ok {
		c.bad(field, `%q is no public address: "host", 203.0.113.7 or 203.0.113.0/28`, a)
		return p, false
	}
	if !c.prefix(field, p) {
		return p, false
	}
	if what := unusable(p); what != "" {
		c.bad(field, "%s overlaps %s", a, what)
		return p, false
	}
	return p, true
}

func (c *checker) disjoint(field, vnet string, p netip.Prefix, seen []netip.Prefix) {
	for _, other := range seen {
		if other.Overlaps(p) {
			c.bad(field, "%s overlaps %s in the same list", p, other)
		}
	}
	v, ok := get[*core.VirtualNetwork](c.set, core.KindVirtualNetwork, vnet)
	if !ok {
		return
	}
	for _, s := range v.AddressSpace {
		if s.IsValid() && s.Overlaps(p) {
			c.bad(field, "%s lies in the address space %s of %s: not a public address", p, s, objectOf(v))
		}
	}
}
