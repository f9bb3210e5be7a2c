package validate

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

const (
	maxUplinks    = 16 // of one network
	maxDeviceName = 15 // the kernel's
	maxVLAN       = 4094
)

func (c *checker) uplinks(v *core.VirtualNetwork) {
	if len(v.Uplinks) > maxUplinks {
		c.bad("uplinks", "has %d uplinks: at most %d are possible", len(v.Uplinks), maxUplinks)
		return
	}
	for i, u := range v.Uplinks {
		field := at("uplinks", i)
		c.label(field+".name", u.Name)
		for _, other := range v.Uplinks[:i] {
			if other.Name == u.Name && u.Name != "" {
				c.bad(field+".name", "another uplink of this network is named %q", u.Name)
			}
			c.uplinksApart(field, u, other)
		}
		if strings.TrimSpace(u.Host) == "" {
			c.bad(field+".host", "is missing: the name of the host that has the device").WithHint("\"sluice get hosts\" lists them")
		}
		if c.uplinkDevice(field, u) {
			c.uplinkUnique(field, v, i)
		}
		c.uplinkPrefixes(field, v, u)
		c.addressing(field+".addressing", v, u)
	}
}

// uplinkDevice judges what the uplink stands on.
func (c *checker) uplinkDevice(field string, u core.Uplink) bool {
	given := map[string]string{}
	for kind, name := range map[string]string{"device": u.Device, "bridge": u.Bridge, "tun": u.TUN} {
		if name != "" {
			given[kind] = name
		}
	}
	if u.VLAN != (core.UplinkVLAN{}) {
		given["vlan.parent"] = u.VLAN.Parent
		if u.VLAN.ID < 1 || u.VLAN.ID > maxVLAN {
			c.bad(field+".vlan.id", "%d is not a VLAN: 1 to %d", u.VLAN.ID, maxVLAN)
		}
	}
	if len(given) != 1 {
		c.bad(field, "needs one of device, vlan, bridge and tun, not %d", len(given)).
			WithHint("device takes a NIC from the host, vlan stands on one, bridge adds a port, tun takes a VPN's device")
		return false
	}
	for kind, name := range given {
		if name == "" || len(name) > maxDeviceName || name == "." || name == ".." || name == "lo" || strings.ContainsAny(name, "/: \t\n\"") {
			c.bad(field+"."+kind, "%q is not the name of a network device: up to %d characters, no space, slash or colon", name, maxDeviceName)
		}
	}
	return true
}

// lent names the device of a host that an uplink has for itself.
func lent(u core.Uplink) string { return u.Device + u.TUN }

// uplinkUnique refuses two uplinks that would stand in each other's way on a host.
func (c *checker) uplinkUnique(field string, v *core.VirtualNetwork, i int) {
	u := v.Uplinks[i]
	for _, other := range all[*core.VirtualNetwork](c.set) {
		for j, o := range other.Uplinks {
			if o.Host != u.Host || other == v && j >= i {
				continue
			}
			whose := at("uplinks", j) + " of " + objectOf(other)
			switch {
			case lent(u) != "" && (lent(u) == lent(o) || lent(u) == o.VLAN.Parent), lent(o) != "" && lent(o) == u.VLAN.Parent:
				c.bad(field, "%s is taken by %s, which has it for itself", u.Source(), whose).
					WithHint("use another device, or a VLAN of one parent for each")
			case u.VLAN == o.VLAN && u.VLAN.ID != 0:
				c.bad(field+".vlan", "%s is taken by %s", u.Source(), whose)
			case u.Bridge != "" && u.Bridge == o.Bridge && other == v:
				c.bad(field+".bridge", "%s is on the bridge %s already: one port is enough", whose, u.Bridge)
			}
		}
		if other == v {
			return // the later of two networks is refused
		}
	}
}

// uplinksApart refuses two ways of one host to the same prefix.
func (c *checker) uplinksApart(field string, u, other core.Uplink) {
	for _, p := range u.Reaches() {
		if u.Host == other.Host && p.IsValid() && slices.Contains(other.Reaches(), p) {
			c.bad(field+".prefixes", "%s is reached by uplink %q already", p, other.Name)
		}
	}
}

func (c *checker) uplinkPrefixes(field string, v *core.VirtualNetwork, u core.Uplink) {
	if len(u.Reaches()) == 0 {
		c.bad(field+".prefixes", "is missing: what is reached through the uplink, such as 10.0.0.0/8")
	}
	for i, p := range u.Prefixes {
		c.farPrefix(at(field+".prefixes", i), v, p)
	}
}

// farPrefix judges a prefix that lies behind an uplink.
func (c *checker) farPrefix(field string, v *core.VirtualNetwork, p netip.Prefix) bool {
	if !c.prefix(field, p) {
		return false
	}
	if p.Bits() == 0 {
		c.bad(field, "0.0.0.0/0 is everything, and so would be the tag VirtualNetwork").WithHint("name the prefixes that lie behind the uplink")
		return false
	}
	if what := unusable(p); what != "" {
		c.bad(field, "%s overlaps %s", p, what)
		return false
	}
	for _, s := range v.AddressSpace {
		if contains(s, p) {
			c.bad(field, "%s is inside the address space %s: nothing of it lies behind an uplink", p, s).
				WithHint("the address space holds only what this network itself hands out")
			return false
		}
	}
	return true
}

func (c *checker) addressing(field string, v *core.VirtualNetwork, u core.Uplink) {
	a := u.Addressing
	oneOf(c, field+".mode", a.Mode, core.AddressingStatic, core.AddressingRange, core.AddressingDHCP)
	onNetwork := a.Network.IsValid() && c.farPrefix(field+".network", v, a.Network)
	if u.TUN != "" {
		c.tunAddressing(field, a)
	} else if !a.Network.IsValid() {
		c.bad(field+".network", "is missing: the prefix of the network that %s is on, such as 192.168.10.0/24", u.Source())
	}
	if u.TUN == "" {
		c.uplinkGateway(field, v, u, onNetwork)
	}
	switch a.Mode {
	case core.AddressingStatic:
		c.staticAddressing(field, v, u, onNetwork)
	case core.AddressingRange, core.AddressingDHCP:
		c.rangeAddressing(field, v, u, onNetwork)
	}
}

func (c *checker) tunAddressing(field string, a core.UplinkAddressing) {
	if a.Mode == core.AddressingRange || a.Mode == core.AddressingDHCP {
		c.bad(field+".mode", "%s needs ARP, which a TUN has not", a.Mode).WithHint("use static: the VPN's other end has a route to the address space")
	}
	if a.Gateway.IsValid() {
		c.bad(field+".gateway", "a TUN has one other end, and needs no gateway").WithHint("leave it out")
	}
}

func (c *checker) uplinkGateway(field string, v *core.VirtualNetwork, u core.Uplink, onNetwork bool) {
	g := u.Addressing.Gateway
	if !g.IsValid() {
		for i, p := range u.Prefixes {
			if p.IsValid() && onNetwork && !u.OnLink(p) {
				c.bad(field+".gateway", "is missing: %s (%s) is not on the network %s", p, at("prefixes", i), u.Addressing.Network).
					WithHint("name the router of that network which leads there")
				return
			}
		}
		return
	}
	c.onUplinkNetwork(field+".gateway", v, u, g, onNetwork)
}

// onUplinkNetwork refuses an address that no machine of the uplink's network can have.
func (c *checker) onUplinkNetwork(field string, v *core.VirtualNetwork, u core.Uplink, a netip.Addr, onNetwork bool) {
	n := u.Addressing.Network
	switch {
	case !a.Is4():
		c.bad(field, "%s is not IPv4", a)
	case !onNetwork:
	case !n.Contains(a):
		c.bad(field, "%s is not on the network %s", a, n)
	case n.Bits() < 31 && (a == n.Addr() || !n.Contains(a.Next())):
		c.bad(field, "%s is the first or the last address of %s, which no machine has", a, n)
	}
	for _, s := range v.AddressSpace {
		if s.IsValid() && s.Contains(a) {
			c.bad(field, "%s is inside the address space %s: it belongs to the network, not to what lies behind the uplink", a, s)
		}
	}
}

func (c *checker) staticAddressing(field string, v *core.VirtualNetwork, u core.Uplink, onNetwork bool) {
	a := u.Addressing
	if a.Subnet != "" {
		c.bad(field+".subnet", "belongs to the modes range and dhcp")
	}
	switch {
	case a.Address.IsValid():
		c.onUplinkNetwork(field+".address", v, u, a.Address, onNetwork)
		if a.Address == a.Gateway {
			c.bad(field+".address", "%s is the gateway's", a.Address)
		}
	case u.TUN == "":
		c.bad(field+".address", "is missing: the uplink's own address on its network")
	}
}

func (c *checker) rangeAddressing(field string, v *core.VirtualNetwork, u core.Uplink, onNetwork bool) {
	a := u.Addressing
	if a.Address.IsValid() {
		c.bad(field+".address", "belongs to the mode static: with range it is the second address of the subnet, with dhcp it is leased")
	}
	s, ok := c.subnet(v.Name, a.Subnet)
	switch {
	case a.Subnet == "":
		c.bad(field+".subnet", "is missing: the subnet whose addresses are handed out of the network")
	case !ok:
		c.bad(field+".subnet", "%s has no subnet %q", objectOf(v), a.Subnet)
	case onNetwork && s.Prefix.IsValid() && (!contains(a.Network, s.Prefix) || a.Network == s.Prefix):
		c.bad(field+".subnet", "%s of subnet %q is not a part of the network %s", s.Prefix, s.Name, a.Network).
			WithHint("give the subnet a part of %s that nothing else hands out", a.Network)
	case a.Mode == core.AddressingDHCP:
		c.dhcpAddressing(field, v, s)
	}
}

// dhcpAddressing refuses a subnet whose addresses could not all be leased by DHCP.
func (c *checker) dhcpAddressing(field string, v *core.VirtualNetwork, s core.Subnet) {
	if s.Delegation != core.DelegationGateways {
		c.bad(field+".subnet", "subnet %q is not delegated to %s: only members lease addresses by DHCP", s.Name, core.DelegationGateways)
	}
	for i, other := range v.Uplinks {
		if other.Addressing.Mode == core.AddressingRange && other.Addressing.Subnet == s.Name {
			c.bad(field+".mode", "%s hands out subnet %q as a range", at("uplinks", i), s.Name).
				WithHint("the addresses of one subnet are all leased by DHCP, or none of them")
		}
	}
}
