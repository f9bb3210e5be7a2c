package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// Flow is the first packet of a connection. The ports count for TCP and UDP only; an
// ICMP flow is a ping.
type Flow struct {
	Source          netip.Addr
	Destination     netip.Addr
	Protocol        core.Protocol
	DestinationPort uint16
	SourcePort      uint16
}

// Decision is what one NSG said about a flow at one level, and through which rule.
type Decision struct {
	NSG       string
	Rule      string
	Priority  int
	Direction core.Direction
	Level     core.RuleLevel
	Subnet    string
	Gateway   string // whose member's NIC; empty at a subnet
	Access    core.Access
}

// String gives the decision in words: "denied by rule data/deny-all (4096) at subnet
// data, inbound", "allowed by rule bi/db (100) at the NIC of gateway corp-bi, outbound".
func (d Decision) String() string {
	verb := "denied"
	if d.Access == core.Allow {
		verb = "allowed"
	}
	return fmt.Sprintf("%s by rule %s/%s (%d) at %s, %s",
		verb, d.NSG, d.Rule, d.Priority, d.place(), strings.ToLower(string(d.Direction)))
}

func (d Decision) place() string {
	if d.Level == core.LevelNIC {
		return "the NIC of gateway " + d.Gateway
	}
	return "subnet " + d.Subnet
}

// Verdict is what happens to a flow. It passes only if no rule denies it and Route
// leads somewhere.
type Verdict struct {
	Allowed bool
	// Decisions in the order of evaluation; a denial is the last one. Where there is
	// no NSG, there is none.
	Decisions []Decision
	// Route is "VnetLocal", "NAT gateway NAME", "tunnel", or "none: " and the reason.
	Route string
}

// routeNone begins the route of a flow that leads nowhere.
const routeNone = "none: "

// Denial returns the decision that denied the flow, if a rule did.
func (v Verdict) Denial() (Decision, bool) {
	for _, d := range v.Decisions {
		if d.Access == core.Deny {
			return d, true
		}
	}
	return Decision{}, false
}

// HasRoute reports whether the flow leads somewhere, whatever the rules say.
func (v Verdict) HasRoute() bool { return !strings.HasPrefix(v.Route, routeNone) }
