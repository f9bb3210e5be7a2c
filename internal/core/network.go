package core

import "net/netip"

// DelegationGateways is the delegation that a subnet needs before gateways may be
// placed in it.
const DelegationGateways = "sluice/gateways"

// VirtualNetwork is a private network: an address space and its subnets.
type VirtualNetwork struct {
	Name         string         `json:"name"`
	AddressSpace []netip.Prefix `json:"addressSpace"`
	Subnets      []Subnet       `json:"subnets,omitempty"`
	Uplinks      []Uplink       `json:"uplinks,omitempty"`
	Peerings     []Peering      `json:"peerings,omitempty"`
	DNS          VNetDNS        `json:"dns,omitzero"`
}

// Subnet is a range of a virtual network. NSG, NATGateway and RouteTable are names, empty
// for none.
type Subnet struct {
	Name       string       `json:"name"`
	Prefix     netip.Prefix `json:"prefix"`
	Delegation string       `json:"delegation,omitempty"`
	NSG        string       `json:"nsg,omitempty"`
	NATGateway string       `json:"natGateway,omitempty"`
	RouteTable string       `json:"routeTable,omitempty"`
}

// Direction of traffic, seen from the subnet that an NSG is associated with.
type Direction string

// The directions.
const (
	Inbound  Direction = "Inbound"
	Outbound Direction = "Outbound"
)

// Access is what a rule does with the traffic that it matches.
type Access string

// The accesses.
const (
	Allow Access = "Allow"
	Deny  Access = "Deny"
)

// Protocol that a rule matches.
type Protocol string

// The protocols of a rule.
const (
	ProtocolTCP  Protocol = "TCP"
	ProtocolUDP  Protocol = "UDP"
	ProtocolICMP Protocol = "ICMP"
	ProtocolESP  Protocol = "ESP"
	ProtocolAH   Protocol = "AH"
	ProtocolAny  Protocol = "Any"
)

// HasPorts reports whether the protocol's packets carry ports.
func (p Protocol) HasPorts() bool { return p == ProtocolTCP || p == ProtocolUDP }

// NetworkSecurityGroup is a list of rules; the first that matches, by ascending
// priority, decides. The default rules follow the declared ones. A change acts on new
// flows; with Revoke it also cuts the established ones that the rules now deny.
type NetworkSecurityGroup struct {
	Name    string         `json:"name"`
	Revoke  bool           `json:"revoke,omitempty"`
	FlowLog FlowLog        `json:"flowLog,omitzero"`
	Rules   []SecurityRule `json:"rules,omitempty"`
}

// SecurityRule is one rule. Source and Destination hold "Any", an address, a
// prefix, the name of an application security group, or a service tag (VirtualNetwork,
// Internet, LoadBalancer, PlatformDNS, PlatformTunnel, or a ServiceTag's name) each; an
// empty list means Any. Ports are "5432" or "8000-8999"; an empty list, or "*" in it,
// means every port.
type SecurityRule struct {
	Name             string    `json:"name"`
	Priority         int       `json:"priority"`
	Direction        Direction `json:"direction"`
	Access           Access    `json:"access"`
	Protocol         Protocol  `json:"protocol"`
	Source           []string  `json:"source,omitempty"`
	SourcePorts      []string  `json:"sourcePorts,omitempty"`
	Destination      []string  `json:"destination,omitempty"`
	DestinationPorts []string  `json:"destinationPorts,omitempty"`
}

// ApplicationSecurityGroup is a name for the addresses of those that list it: a
// gateway's members, private endpoints. Rules name it in place of the addresses.
type ApplicationSecurityGroup struct {
	Name string `json:"name"`
}

// ServiceTag is an administrator's name for prefixes, which rules may name.
type ServiceTag struct {
	Name     string         `json:"name"`
	Prefixes []netip.Prefix `json:"prefixes"`
}

// NATGateway gives the subnets that name it a way out. PublicAddresses holds
// "host" (leave as the host itself), or addresses and prefixes routed to the host.
type NATGateway struct {
	Name            string   `json:"name"`
	VNet            string   `json:"vnet"`
	PublicAddresses []string `json:"publicAddresses"`
	IdleTimeout     Duration `json:"idleTimeout,omitempty"` // default 4m; 4m to 120m
}

// PrivateDNSZone is a zone that the resolvers of the linked virtual networks answer: its
// record sets, and the names of the private endpoints that lie in it.
type PrivateDNSZone struct {
	Name string `json:"name"`
	// Zone is the DNS name. Default: Name. Two zones may share it, for different networks.
	Zone    string         `json:"zone,omitempty"`
	VNets   []string       `json:"vnets,omitempty"`
	TTL     Duration       `json:"ttl,omitempty"` // of record sets that state none; default 30s
	Records []DNSRecordSet `json:"records,omitempty"`
}

// PrivateEndpoint is an address in a subnet that stands for a data service which
// the host reaches at Target.
type PrivateEndpoint struct {
	Name    string     `json:"name"`
	VNet    string     `json:"vnet"`
	Subnet  string     `json:"subnet"`
	Address netip.Addr `json:"address,omitzero"` // left out: the next free one, filled in by the service
	Target  string     `json:"target"`           // host:port; the endpoint answers on the same port
	DNSName string     `json:"dnsName,omitempty"`
	// ApplicationSecurityGroups that its address belongs to.
	ApplicationSecurityGroups []string `json:"applicationSecurityGroups,omitempty"`
}

// Kind implements Resource.
func (v *VirtualNetwork) Kind() Kind { return KindVirtualNetwork }

// ResourceName implements Resource.
func (v *VirtualNetwork) ResourceName() string { return v.Name }

// Kind implements Resource.
func (n *NetworkSecurityGroup) Kind() Kind { return KindNetworkSecurityGroup }

// ResourceName implements Resource.
func (n *NetworkSecurityGroup) ResourceName() string { return n.Name }

// Kind implements Resource.
func (g *ApplicationSecurityGroup) Kind() Kind { return KindApplicationSecurityGroup }

// ResourceName implements Resource.
func (g *ApplicationSecurityGroup) ResourceName() string { return g.Name }

// Kind implements Resource.
func (t *ServiceTag) Kind() Kind { return KindServiceTag }

// ResourceName implements Resource.
func (t *ServiceTag) ResourceName() string { return t.Name }

// Kind implements Resource.
func (n *NATGateway) Kind() Kind { return KindNATGateway }

// ResourceName implements Resource.
func (n *NATGateway) ResourceName() string { return n.Name }

// Kind implements Resource.
func (z *PrivateDNSZone) Kind() Kind { return KindPrivateDNSZone }

// ResourceName implements Resource.
func (z *PrivateDNSZone) ResourceName() string { return z.Name }

// Kind implements Resource.
func (e *PrivateEndpoint) Kind() Kind { return KindPrivateEndpoint }

// ResourceName implements Resource.
func (e *PrivateEndpoint) ResourceName() string { return e.Name }
