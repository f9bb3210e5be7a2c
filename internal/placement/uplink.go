package placement

import (
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// goalUplinks lists a network's uplinks, none of which is anywhere yet.
func goalUplinks(v *core.VirtualNetwork) []core.GoalUplink {
	var out []core.GoalUplink
	for _, u := range v.Uplinks {
		out = append(out, core.GoalUplink{Uplink: u})
	}
	return out
}

// uplinksHere marks the uplinks that a host has to make.
func uplinksHere(v core.GoalVNet, host string) core.GoalVNet {
	for i := range v.Uplinks {
		v.Uplinks[i].Here = v.Uplinks[i].Host == host
	}
	return v
}

// UplinkHosts leaves of the hosts those from which members of a network reach all that it
// is joined to: with uplinks, the connected hosts that have the most of them. If no host with an
// uplink is connected, that is an error, because elsewhere its prefixes can't be reached.
// Of a subnet whose addresses are leased by DHCP, only the uplinks that lease them count.
func UplinkHosts(v *core.VirtualNetwork, subnet string, hosts []core.Host) ([]core.Host, error) {
	if len(v.Uplinks) == 0 {
		return hosts, nil
	}
	count := map[string]int{}
	var names []string
	for _, u := range v.Uplinks {
		if !v.LeasedElsewhere(subnet) || u.LeasesFor(subnet) {
			count[u.Host]++
			names = append(names, u.Host)
		}
	}
	var best []core.Host
	for _, h := range hosts {
		switch {
		case !h.Connected || count[h.Name] == 0:
		case len(best) == 0 || count[h.Name] > count[best[0].Name]:
			best = []core.Host{h}
		case count[h.Name] == count[best[0].Name]:
			best = append(best, h)
		}
	}
	if len(best) > 0 {
		return best, nil
	}
	slices.Sort(names)
	all := strings.Join(slices.Compact(names), ", ")
	return nil, errs.New(errs.Unavailable, "no host that has an uplink of VirtualNetwork %s is connected: they are on %s", v.Name, all).
		WithHint("start \"sluice host\" there, or change uplinks[].host; \"sluice get hosts\" lists the names")
}
