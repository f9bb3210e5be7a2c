package core

import (
	"net/netip"
	"slices"
	"strconv"
)

// Uplink joins a virtual network, on one host, to a network that exists already. Exactly
// one of Device, VLAN, Bridge and TUN says by what.
type Uplink struct {
	Name   string     `json:"name"`
	Host   string     `json:"host"`             // that has the device
	Device string     `json:"device,omitempty"` // a NIC, which the host lends
	VLAN   UplinkVLAN `json:"vlan,omitzero"`
	Bridge string     `json:"bridge,omitempty"` // a Linux bridge, which gets a port
	TUN    string     `json:"tun,omitempty"`    // a VPN's device without ARP, which the host lends
	// Prefixes are reached through it, besides the network that it is on (on-premises).
	Prefixes   []netip.Prefix   `json:"prefixes,omitempty"`
	Addressing UplinkAddressing `json:"addressing,omitzero"`
	// Force takes a device that the host's own default route leads through.
	Force bool `json:"force,omitempty"`
}

// UplinkVLAN is a VLAN of a device of the host.
type UplinkVLAN struct {
	Parent string `json:"parent"`
	ID     int    `json:"id"`
}

// AddressingMode says whose addresses the network behind an uplink sees.
type AddressingMode string

// The modes. With AddressingStatic the uplink is a router of that network with one
// address, and the others have a route to the virtual network through it. With
// AddressingRange a subnet is a part of that network, and the uplink answers ARP for
// each leased address of it. With AddressingDHCP it does that, too, and the addresses, the
// uplink's own among them, are leased from that network's DHCP server.
const (
	AddressingStatic AddressingMode = "static"
	AddressingRange  AddressingMode = "range"
	AddressingDHCP   AddressingMode = "dhcp"
)

// UplinkAddressing is how a virtual network appears on the network of an uplink.
type UplinkAddressing struct {
	Mode    AddressingMode `json:"mode"`
	Network netip.Prefix   `json:"network,omitzero"` // that the uplink is on; a TUN needs none
	Gateway netip.Addr     `json:"gateway,omitzero"` // of that network, to prefixes outside of it
	Address netip.Addr     `json:"address,omitzero"` // static: the uplink's own
	Subnet  string         `json:"subnet,omitempty"` // range and dhcp: inside Network
}

// LeasedElsewhere says that a subnet's addresses are leased by DHCP through uplinks, so that the
// service does not choose them.
func (v *VirtualNetwork) LeasedElsewhere(subnet string) bool {
	return slices.ContainsFunc(v.Uplinks, func(u Uplink) bool { return u.LeasesFor(subnet) })
}

// LeasesFor says that the addresses of a subnet are leased by DHCP through the uplink.
func (u Uplink) LeasesFor(subnet string) bool {
	return u.Addressing.Mode == AddressingDHCP && u.Addressing.Subnet == subnet
}

// Source is the device of the host that the uplink stands on: "device eth1", "vlan 5 of
// eth1", "bridge br0", "tun wg0".
func (u Uplink) Source() string {
	switch {
	case u.Device != "":
		return "device " + u.Device
	case u.VLAN != UplinkVLAN{}:
		return "vlan " + strconv.Itoa(u.VLAN.ID) + " of " + u.VLAN.Parent
	case u.Bridge != "":
		return "bridge " + u.Bridge
	}
	return "tun " + u.TUN
}

// Reaches lists every prefix that the uplink leads to, none twice.
func (u Uplink) Reaches() []netip.Prefix {
	out := slices.Clone(u.Prefixes)
	if u.Addressing.Network.IsValid() && !slices.Contains(out, u.Addressing.Network) {
		out = append(out, u.Addressing.Network)
	}
	return out
}

// OnLink says that a prefix is reached without a gateway.
func (u Uplink) OnLink(p netip.Prefix) bool {
	n := u.Addressing.Network
	return u.TUN != "" || n.IsValid() && n.Bits() <= p.Bits() && n.Contains(p.Addr())
}

// GoalUplink is an uplink as a host is told of it. Every host hears of all, because rules
// depend on their prefixes; Here says that this host has to make it.
type GoalUplink struct {
	Uplink
	Here bool `json:"here,omitempty"`
}
