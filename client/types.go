package client

import (
	"net/netip"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

// TestResult lists the steps of a data source's test as far as they came; the last
// one carries the error, if any.
type TestResult struct {
	Steps []TestStep `json:"steps"`
}

// TestStep is one step: resolve, connect, tls, sign-in or execute.
type TestStep struct {
	Name     string        `json:"name"`
	Duration time.Duration `json:"durationNs"`
	Detail   string        `json:"detail,omitempty"`
	Error    string        `json:"error,omitempty"`
	Hint     string        `json:"hint,omitempty"`
	SQLState string        `json:"sqlState,omitempty"`
}

// Check asks what the rules say about a connection (POST /v1/check).
type Check struct {
	Gateway  string        `json:"gateway"`
	From     string        `json:"from,omitempty"` // member (default) or subnet
	Host     string        `json:"host"`
	Port     uint16        `json:"port"`
	Protocol core.Protocol `json:"protocol,omitempty"` // TCP by default
	Dry      bool          `json:"dry,omitempty"`
	Timeout  time.Duration `json:"timeoutNs,omitempty"`
	// VNet and Subnet stand in place of Gateway where nothing but what holds is asked.
	VNet   string `json:"vnet,omitempty"`
	Subnet string `json:"subnet,omitempty"`
	// EffectiveRules, EffectiveRoutes and NextHop (to Host) ask for what holds for a
	// gateway's members or in a subnet, and nothing else.
	EffectiveRules  bool `json:"effectiveRules,omitempty"`
	EffectiveRoutes bool `json:"effectiveRoutes,omitempty"`
	NextHop         bool `json:"nextHop,omitempty"`
}

// CheckResult is the verdict of the rules and, unless dry, what a probe met.
type CheckResult struct {
	Source      string    `json:"source"`
	Destination string    `json:"destination"`
	Allowed     bool      `json:"allowed"`
	Reasons     []string  `json:"reasons"`
	Probe       *Probe    `json:"probe,omitempty"`
	Agree       *bool     `json:"agree,omitempty"`
	Endpoint    *Endpoint `json:"endpoint,omitempty"`
	Rules       []Rule    `json:"rules,omitempty"`
	Routes      []Route   `json:"routes,omitempty"`
	NextHop     *NextHop  `json:"nextHop,omitempty"`
}

// Endpoint is the private endpoint that answers on a destination's address.
type Endpoint struct {
	Name   string `json:"name"`
	VNet   string `json:"vnet"`
	Port   uint16 `json:"port"`
	Target string `json:"target"`
}

// NextHop is where packets to an address go.
type NextHop struct {
	NextHop core.NextHop `json:"nextHop"`
	Through string       `json:"through,omitempty"` // the appliance, peer, uplink or NAT gateway
	Route   string       `json:"route,omitempty"`   // that decides, in words
	Reason  string       `json:"reason,omitempty"`  // why it leads nowhere
}

// Rule is a security rule as it holds, in the order of evaluation. The prefixes are what
// groups and tags stand for now.
type Rule struct {
	Level               string         `json:"level"` // subnet, or NIC: the member's own
	NSG                 string         `json:"nsg"`
	Name                string         `json:"name"`
	Priority            int            `json:"priority"`
	Default             bool           `json:"default,omitempty"`
	Direction           core.Direction `json:"direction"`
	Access              core.Access    `json:"access"`
	Protocol            core.Protocol  `json:"protocol"`
	Source              []string       `json:"source"`
	SourcePorts         []string       `json:"sourcePorts"`
	Destination         []string       `json:"destination"`
	DestinationPorts    []string       `json:"destinationPorts"`
	SourcePrefixes      []netip.Prefix `json:"sourcePrefixes,omitempty"`
	DestinationPrefixes []netip.Prefix `json:"destinationPrefixes,omitempty"`
}

// Route is a route as it holds for a gateway's subnet; Table is empty for the network's own.
type Route struct {
	Table      string       `json:"table,omitempty"`
	Name       string       `json:"name"`
	Prefix     netip.Prefix `json:"prefix"`
	NextHop    core.NextHop `json:"nextHop"`
	Through    string       `json:"through,omitempty"`    // the appliance, peer, uplink or NAT gateway
	Overridden bool         `json:"overridden,omitempty"` // a route of the same prefix comes first
	Reason     string       `json:"reason,omitempty"`     // why it leads nowhere
}

// Probe is one TCP connection that a member tried.
type Probe struct {
	Address   string        `json:"address,omitempty"`
	Connected bool          `json:"connected"`
	Error     string        `json:"error,omitempty"`
	Resolve   time.Duration `json:"resolveNs"`
	Connect   time.Duration `json:"connectNs"`
}
