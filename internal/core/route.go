package core

import "net/netip"

// NextHop is where a route leads.
type NextHop string

// The next hops. A user-defined route to VnetLocal, Peering or Uplink leads where the
// network's own route would, and is how a part of a prefix is left out of a wider route.
const (
	HopVnetLocal        NextHop = "VnetLocal"
	HopPeering          NextHop = "Peering"
	HopUplink           NextHop = "Uplink"
	HopVirtualAppliance NextHop = "VirtualAppliance" // the route's Address
	HopInternet         NextHop = "Internet"         // through the subnet's NAT gateway
	HopNone             NextHop = "None"
)

// NextHops lists them all.
func NextHops() []NextHop {
	return []NextHop{HopVnetLocal, HopPeering, HopUplink, HopVirtualAppliance, HopInternet, HopNone}
}

// RouteTable is a list of user-defined routes for the subnets that name it. The longest
// prefix decides; of equal ones, the user-defined route and not the network's own.
type RouteTable struct {
	Name   string  `json:"name"`
	Routes []Route `json:"routes,omitempty"`
}

// Route is one user-defined route.
type Route struct {
	Name    string       `json:"name"`
	Prefix  netip.Prefix `json:"prefix"`
	NextHop NextHop      `json:"nextHop"`
	Address netip.Addr   `json:"address,omitzero"` // of a VirtualAppliance
}

// Peering is one side's wish to be joined to another virtual network. It is in effect
// once the other side has one that names this network.
type Peering struct {
	Name   string `json:"name"`
	Remote string `json:"remote"` // the other virtual network
}

// PeeringState says whether a peering is in effect.
type PeeringState string

// The states of a peering.
const (
	PeeringInitiated PeeringState = "Initiated" // the other side does not name this network
	PeeringConnected PeeringState = "Connected"
)

// StateOf returns the state of v's peering p; remote is the network that it names, nil if
// there is none.
func (v *VirtualNetwork) StateOf(p Peering, remote *VirtualNetwork) PeeringState {
	if remote != nil && remote.Name == p.Remote {
		for _, back := range remote.Peerings {
			if back.Remote == v.Name {
				return PeeringConnected
			}
		}
	}
	return PeeringInitiated
}

// GoalPeer is a virtual network that another one is connected to.
type GoalPeer struct {
	UID          string         `json:"uid"`
	Name         string         `json:"name"` // of the network
	AddressSpace []netip.Prefix `json:"addressSpace"`
}

// Kind implements Resource.
func (t *RouteTable) Kind() Kind { return KindRouteTable }

// ResourceName implements Resource.
func (t *RouteTable) ResourceName() string { return t.Name }
