package core

import (
	"net/netip"
	"slices"
)

// GoalState is the complete description of what one host must be running. It holds
// no secret. Versions of one host only grow; a host that is given an older version
// than it has ignores it.
type GoalState struct {
	Version int64        `json:"version"`
	VNets   []GoalVNet   `json:"vnets,omitempty"`
	Members []GoalMember `json:"members,omitempty"`
}

// GoalVNet is a virtual network with everything that a host needs to build it; all
// references are resolved to values. UID gives the names on the host.
type GoalVNet struct {
	UID          string                 `json:"uid"`
	Tenant       TenantID               `json:"tenant"`
	Name         string                 `json:"name"`
	AddressSpace []netip.Prefix         `json:"addressSpace"`
	Subnets      []Subnet               `json:"subnets"`
	Uplinks      []GoalUplink           `json:"uplinks,omitempty"`
	NSGs         []NetworkSecurityGroup `json:"nsgs,omitempty"`        // those that its subnets and gateways name
	ASGs         []GoalASG              `json:"asgs,omitempty"`        // those that its NSGs name
	ServiceTags  []ServiceTag           `json:"serviceTags,omitempty"` // those that its NSGs name
	NICs         []GoalNIC              `json:"nics,omitempty"`
	NATGateways  []GoalNATGateway       `json:"natGateways,omitempty"`
	RouteTables  []RouteTable           `json:"routeTables,omitempty"` // those that its subnets name
	Peers        []GoalPeer             `json:"peers,omitempty"`       // those that it is connected to
	Endpoints    []GoalEndpoint         `json:"endpoints,omitempty"`
	Zones        []GoalZone             `json:"zones,omitempty"`
	DNS          GoalDNS                `json:"dns,omitzero"`
}

// GoalASG is an application security group with the addresses in the virtual network
// that belong to it.
type GoalASG struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

// GoalNIC is a member's interface that an NSG of its own applies to.
type GoalNIC struct {
	Address netip.Addr `json:"address"`
	Gateway string     `json:"gateway"`
	NSG     string     `json:"nsg"`
}

// GoalNATGateway is a NAT gateway of a virtual network.
type GoalNATGateway struct {
	UID string `json:"uid"`
	NATGateway
}

// GoalEndpoint is a private endpoint of a virtual network, its address decided.
type GoalEndpoint struct {
	UID     string     `json:"uid"`
	Name    string     `json:"name"`
	Subnet  string     `json:"subnet"`
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port"`   // the endpoint's port, that of the target
	Target  string     `json:"target"` // host:port, as the host reaches it
}

// GoalMember is a member that the host must be running.
type GoalMember struct {
	ID            string     `json:"id"`
	Generation    int64      `json:"generation"`
	Tenant        TenantID   `json:"tenant"`
	Gateway       string     `json:"gateway"`
	VNetUID       string     `json:"vnetUid"`
	Subnet        string     `json:"subnet"`
	Address       netip.Addr `json:"address"` // none: it is to be leased by DHCP
	TunnelAddress netip.Addr `json:"tunnelAddress"`
	Size          MemberSize `json:"size"`
}

// HostReport is what a host observed. A host sends one after each reconciliation and
// whenever something changes by itself.
type HostReport struct {
	Host string `json:"host"`
	// Installation is the same for one run directory of one machine, for ever.
	Installation string `json:"installation"`
	// Version is the newest goal state that the host has acted on, whether or not
	// each part of it succeeded.
	Version int64 `json:"version"`
	// Complete says that Members is everything that exists on the host for this
	// installation, so that a member which is absent is confirmed as torn down.
	Complete bool             `json:"complete"`
	Members  []ObservedMember `json:"members,omitempty"`
	Problems []string         `json:"problems,omitempty"` // what the host could not make true, and why
	// Image names the program that new members run; "" if it is not known.
	Image string `json:"image,omitempty"`
	// Load is what is in use of the machine; zero if the host can't tell.
	Load HostLoad `json:"load,omitzero"`
	// NATGateways tells what those of the goal state did, as last looked at.
	NATGateways []NATGatewayReport `json:"natGateways,omitempty"`
	// Tunnels tells what the relay carried for members, as last looked at.
	Tunnels []TunnelReport `json:"tunnels,omitempty"`
}

// TunnelReport is what a host's relay carried for one member since the host's process began,
// or the member came.
type TunnelReport struct {
	Member      string `json:"member"`
	Generation  int64  `json:"generation"`
	Connections int    `json:"connections"` // open now
	Accepted    int64  `json:"accepted"`    // connections ever
	Refused     int64  `json:"refused"`     // over the member's limit, or the service could not be reached
	ToService   int64  `json:"toService"`   // bytes
	ToMember    int64  `json:"toMember"`
}

// ObservedMember is what a host knows of one member.
type ObservedMember struct {
	ID         string `json:"id"`
	Generation int64  `json:"generation"`
	// Present says that anything of the member exists: container, namespace or veth.
	Present bool `json:"present"`
	Running bool `json:"running"`
	// JoinTokenHash is the SHA-256 of the one-time token that the host handed to the
	// member, hex. The token itself never leaves the host but through the member.
	JoinTokenHash string `json:"joinTokenHash,omitempty"`
	// Address is what the member holds by DHCP on the network of an uplink; the goal state
	// does not have it yet, or has the same.
	Address netip.Addr `json:"address,omitzero"`
	// Exit says why a member that is not running ended: "exit status 1", "out of
	// memory: the limit is 8192 MiB".
	Exit string `json:"exit,omitempty"`
	// Wrote is the last line that a member which ended wrote to its log, cut to some
	// hundred bytes. It may speak of a query: it is for members that never ran one.
	Wrote string `json:"wrote,omitempty"`
	// Image names the program that it runs; "" if it is not known.
	Image string `json:"image,omitempty"`
	// Phases of the injection as the host timed them: network, sandbox.
	Phases []Phase `json:"phases,omitempty"`
}

// Equal reports whether two observations say the same.
func (o ObservedMember) Equal(p ObservedMember) bool {
	return o.ID == p.ID && o.Generation == p.Generation && o.Present == p.Present && o.Running == p.Running &&
		o.JoinTokenHash == p.JoinTokenHash && o.Address == p.Address && o.Exit == p.Exit && o.Wrote == p.Wrote && o.Image == p.Image && slices.Equal(o.Phases, p.Phases)
}
