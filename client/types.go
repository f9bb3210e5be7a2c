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
	// EffectiveRoutes asks for the routes of the gateway's subnet and nothing else.
	EffectiveRoutes bool `json:"effectiveRoutes,omitempty"`
}

// CheckResult is the verdict of the rules and, unless dry, what a probe met.
type CheckResult struct {
	Source      string   `json:"source"`
	Destination string   `json:"destination"`
	Allowed     bool     `json:"allowed"`
	Reasons     []string `json:"reasons"`
	Probe       *Probe   `json:"probe,omitempty"`
	Agree       *bool    `json:"agree,omitempty"`
	Routes      []Route  `json:"routes,omitempty"`
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
