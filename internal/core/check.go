package core

import (
	"fmt"
	"net/netip"
	"time"
)

// Check asks what the rules say about a connection, and what a probe meets
// (POST /v1/check).
type Check struct {
	Gateway  string        `json:"gateway"`
	From     string        `json:"from,omitempty"` // "member" (default) or "subnet"
	Host     string        `json:"host"`
	Port     uint16        `json:"port"`
	Protocol Protocol      `json:"protocol,omitempty"` // TCP by default
	Dry      bool          `json:"dry,omitempty"`      // no probe
	Timeout  time.Duration `json:"timeoutNs,omitempty"`
	// VNet and Subnet stand in place of Gateway where nothing but what holds is asked.
	VNet   string `json:"vnet,omitempty"`
	Subnet string `json:"subnet,omitempty"`
	// EffectiveRules, EffectiveRoutes and NextHop ask for what holds, and nothing else:
	// the rules and routes of a gateway's members or a subnet; where Host, an address or a
	// name of a private zone, is from there.
	EffectiveRules  bool `json:"effectiveRules,omitempty"`
	EffectiveRoutes bool `json:"effectiveRoutes,omitempty"`
	NextHop         bool `json:"nextHop,omitempty"`
}

// Effective says that a check asks for what holds, not for a connection.
func (c Check) Effective() bool { return c.EffectiveRules || c.EffectiveRoutes || c.NextHop }

// CheckResult is the verdict of the rules and, unless the check is dry, what a real probe
// met.
type CheckResult struct {
	Source      string           `json:"source"`      // the member's, or any free, address in the subnet
	Destination string           `json:"destination"` // the address that the name stands for
	Allowed     bool             `json:"allowed"`
	Reasons     []string         `json:"reasons"` // one line per decision: NSG rules, route, NAT
	Probe       *Probe           `json:"probe,omitempty"`
	Agree       *bool            `json:"agree,omitempty"` // rules and probe say the same
	Endpoint    *EndpointAt      `json:"endpoint,omitempty"`
	Rules       []EffectiveRule  `json:"rules,omitempty"`
	Routes      []EffectiveRoute `json:"routes,omitempty"`
	NextHop     *NextHopTo       `json:"nextHop,omitempty"`
}

// Probe is one TCP connection that a member tried. Address is empty if the name did not
// resolve.
type Probe struct {
	Address   string        `json:"address,omitempty"`
	Connected bool          `json:"connected"`
	Error     string        `json:"error,omitempty"`
	Resolve   time.Duration `json:"resolveNs"`
	Connect   time.Duration `json:"connectNs"`
}

// EndpointAt is the private endpoint that answers on a destination's address.
type EndpointAt struct {
	Name   string `json:"name"`
	VNet   string `json:"vnet"`
	Port   uint16 `json:"port"`
	Target string `json:"target"`
}

// NextHopTo is where packets to an address go.
type NextHopTo struct {
	NextHop NextHop `json:"nextHop"`
	Through string  `json:"through,omitempty"` // the appliance, peer, uplink or NAT gateway
	Route   string  `json:"route,omitempty"`   // that decides, in words
	Reason  string  `json:"reason,omitempty"`  // why it leads nowhere
}

// RuleLevel is where a network security group applies.
type RuleLevel string

// The levels.
const (
	LevelSubnet RuleLevel = "subnet"
	LevelNIC    RuleLevel = "NIC"
)

// EffectiveRule is a security rule as it holds for a member of a subnet, or for the
// subnet's addresses in general.
type EffectiveRule struct {
	Level            RuleLevel `json:"level"` // subnet, or NIC: the member's own
	NSG              string    `json:"nsg"`
	Name             string    `json:"name"`
	Priority         int       `json:"priority"`
	Default          bool      `json:"default,omitempty"` // ends every NSG, declared nowhere
	Direction        Direction `json:"direction"`
	Access           Access    `json:"access"`
	Protocol         Protocol  `json:"protocol"`
	Source           []string  `json:"source"` // as declared
	SourcePorts      []string  `json:"sourcePorts"`
	Destination      []string  `json:"destination"`
	DestinationPorts []string  `json:"destinationPorts"`
	// SourcePrefixes and DestinationPrefixes are what the groups and tags among the
	// declared ones stand for now; Any, Internet and the platform's tags have none.
	SourcePrefixes      []netip.Prefix `json:"sourcePrefixes,omitempty"`
	DestinationPrefixes []netip.Prefix `json:"destinationPrefixes,omitempty"`
}

// EffectiveRoute is a route as it holds for a subnet: of its route table, or the
// network's own.
type EffectiveRoute struct {
	Table   string       `json:"table,omitempty"` // empty for the network's own
	Name    string       `json:"name"`
	Prefix  netip.Prefix `json:"prefix"`
	NextHop NextHop      `json:"nextHop"`
	// Through is the appliance's address, the peer network, the uplink or the NAT gateway.
	Through string `json:"through,omitempty"`
	// Overridden says that a route of the same prefix comes first.
	Overridden bool `json:"overridden,omitempty"`
	// Reason says why a next hop leads nowhere.
	Reason string `json:"reason,omitempty"`
}

// String gives the route in words: "route private/no-data (10.20.1.0/24 → None)",
// "system route 10.30.0.0/16 → Peering hub".
func (r EffectiveRoute) String() string {
	to := fmt.Sprintf("%s → %s", r.Prefix, r.NextHop)
	if r.Through != "" {
		to += " " + r.Through
	}
	if r.Table == "" {
		return "system route " + to
	}
	return fmt.Sprintf("route %s/%s (%s)", r.Table, r.Name, to)
}
