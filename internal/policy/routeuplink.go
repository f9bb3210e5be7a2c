package policy

import (
	"net/netip"

	"github.com/sluice-gateway/sluice/internal/core"
)

// uplinkThrough names the uplink that a prefix is reached through.
func uplinkThrough(v core.GoalVNet, p netip.Prefix) (via, reason string) {
	return "", "virtual network " + v.Name + " has no uplink that leads to " + p.String()
}

// addUplinks adds the network's own routes to what its uplinks lead to.
func addUplinks(core.GoalVNet, func(netip.Prefix, core.NextHop, string, string)) {}
