package policy

import (
	"fmt"
	"net/netip"

	"github.com/sluice-gateway/sluice/internal/core"
)

// On tells the evaluator, and those of the peers that it has, on which host the flows
// begin, and where the members run: a host reaches its own members and its own
// uplinks. Without it a member of any host, and an uplink of any, counts as reached.
func (e *Evaluator) On(host string, members []core.Member) {
	e.host, e.holders = host, map[netip.Addr]string{}
	for _, m := range members {
		if m.VNetUID == e.vnet.UID {
			e.holders[m.Address] = m.Host
		}
	}
	for _, p := range e.peers {
		p.On(host, members)
	}
}

// elsewhere says why the host of the flow does not reach an address of the network, or "".
func (e *Evaluator) elsewhere(a netip.Addr) string {
	there, held := e.holders[a]
	if e.host == "" || !held || there == e.host {
		return ""
	}
	return fmt.Sprintf("%s%s is a member's on host %s, the flow begins on host %s: members on different hosts don't reach each other", routeNone, a, there, e.host)
}
