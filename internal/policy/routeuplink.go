package policy

import (
	"fmt"
	"net/netip"

	"github.com/sluice-gateway/sluice/internal/core"
)

// uplinkThrough names the uplink that a prefix is reached through.
func uplinkThrough(v core.GoalVNet, p netip.Prefix) (via, reason string) {
	longest := -1
	for _, u := range v.Uplinks {
		for _, far := range u.Reaches() {
			if within(p, []netip.Prefix{far}) && far.Bits() > longest {
				via, longest = u.Name, far.Bits()
			}
		}
	}
	if longest < 0 {
		return "", fmt.Sprintf("virtual network %s has no uplink that leads to %s", v.Name, p)
	}
	return via, ""
}

// addUplinks adds the network's own routes to what its uplinks lead to.
func addUplinks(v core.GoalVNet, add func(netip.Prefix, core.NextHop, string, string)) {
	for _, u := range v.Uplinks {
		for _, p := range u.Reaches() {
			add(p, core.HopUplink, u.Name, "")
		}
	}
}
