package policy

import (
	"net/netip"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
)

// TestOnAHost: what only another host has is not reached, and said so.
func TestOnAHost(t *testing.T) {
	t.Parallel()
	in := uplinked()
	in.VNet.Uplinks[0].Host = "h1"
	in.VNet.Uplinks = append(in.VNet.Uplinks, core.GoalUplink{Uplink: core.Uplink{Name: "lab", Host: "h2", TUN: "wg0", Prefixes: []netip.Prefix{prefix("10.7.0.0/16"), prefix("172.20.0.0/16")}}})
	in.VNet.Peers = []core.GoalPeer{{UID: "v-hub", Name: "hub", AddressSpace: []netip.Prefix{prefix("172.30.0.0/16")}}}
	hub := core.GoalVNet{UID: "v-hub", Name: "hub", AddressSpace: []netip.Prefix{prefix("172.30.0.0/16")}, Subnets: []core.Subnet{{Name: "s", Prefix: prefix("172.30.0.0/24")}}}
	members := []core.Member{
		{VNetUID: in.VNet.UID, Address: addr("10.20.0.5"), Host: "h1"}, {VNetUID: in.VNet.UID, Address: addr("10.20.0.6"), Host: "h2"},
		{VNetUID: "v-hub", Address: addr("172.30.0.5"), Host: "h1"}, {VNetUID: "v-hub", Address: addr("172.30.0.6"), Host: "h2"},
		{VNetUID: "v-other", Address: addr("10.20.0.7"), Host: "h2"},
	}
	apart := func(a string) string {
		return "none: " + a + " is a member's on host h2, the flow begins on host h1: members on different hosts don't reach each other"
	}
	for host, routes := range map[string]map[string]string{
		"h1": {
			"10.20.0.5": "VnetLocal", "10.20.0.6": apart("10.20.0.6"), "10.20.0.7": "VnetLocal",
			"172.30.0.5": "Peering hub", "172.30.0.6": apart("172.30.0.6"),
			"10.8.0.1": "Uplink office", "10.7.0.1": "Uplink office", "172.20.0.1": "none: uplink lab is one of host h2, the flow begins on host h1",
		},
		"": {"10.20.0.6": "VnetLocal", "172.30.0.6": "Peering hub", "10.7.0.1": "Uplink lab", "172.20.0.1": "Uplink lab", "10.8.0.1": "Uplink office"},
	} {
		e := NewEvaluator(in.VNet, nil)
		e.AddPeer(hub, nil)
		e.On(host, members)
		for to, want := range routes {
			got := e.Evaluate(Flow{Source: addr("10.20.0.4"), Destination: addr(to), Protocol: core.ProtocolTCP, DestinationPort: 80})
			if got.Route != want {
				t.Errorf("from host %q to %s: %q; want %q", host, to, got.Route, want)
			}
		}
	}
}
