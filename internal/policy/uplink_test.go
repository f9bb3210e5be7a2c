package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
)

// uplinked is the network of the example, joined to an office.
func uplinked() VNetInput {
	in := corpInput()
	in.VNet.Uplinks = []core.GoalUplink{{Here: true, Uplink: core.Uplink{
		Name: "office", Device: "eth1", Prefixes: []netip.Prefix{prefix("10.0.0.0/8")},
		Addressing: core.UplinkAddressing{Mode: core.AddressingStatic, Network: prefix("192.168.10.0/24")},
	}}}
	in.UplinkInterfaces = map[string]string{"office": "u1"}
	return in
}

func TestUplinkInTheRules(t *testing.T) {
	t.Parallel()
	text, err := CompileVNet(uplinked())
	if err != nil {
		t.Fatal(err)
	}
	far := "{ 10.0.0.0-10.19.255.255, 10.21.0.0-10.255.255.255, 192.168.10.0/24 }" // the network's own 10.20.0.0/16 is not
	for _, want := range []string{
		`iifname "u1" ip saddr ` + far + ` counter accept comment "in by uplink office"`,
		`oifname "u1" ip daddr ` + far + ` counter accept comment "out by uplink office"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the rules lack %s:\n%s", want, text)
		}
	}
	_, set, _ := strings.Cut(text, "set virtual_network {")
	if set, _, _ = strings.Cut(set, "}\n\t}"); !strings.Contains(set, "10.0.0.0/8") || !strings.Contains(set, "192.168.10.0/24") {
		t.Errorf("the tag VirtualNetwork is %s", set)
	}
	in := uplinked()
	in.UplinkInterfaces = nil // it is another host's
	if text, err = CompileVNet(in); err != nil || strings.Contains(text, "uplink office") {
		t.Errorf("%v; a host without the uplink has rules for it:\n%s", err, text)
	}
}

func TestUplinkInVerdicts(t *testing.T) {
	t.Parallel()
	v := uplinked().VNet
	v.NSGs = append(slices.Clone(v.NSGs), core.NetworkSecurityGroup{Name: "uplinked", Rules: []core.SecurityRule{
		{Name: "vnet", Priority: 100, Direction: core.Outbound, Access: core.Allow, Protocol: core.ProtocolAny, Destination: []string{TagVirtualNetwork}},
		{Name: "rest", Priority: 200, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolAny},
	}})
	v.Subnets = slices.Clone(v.Subnets)
	v.Subnets[0].NSG = "uplinked"
	for to, want := range map[string]string{
		"10.7.0.1": "Uplink office", "192.168.10.5": "Uplink office", "10.20.0.5": "VnetLocal", "203.0.113.1": "NAT gateway egress",
	} {
		got := Evaluate(v, nil, Flow{Source: addr("10.20.0.4"), Destination: addr(to), Protocol: core.ProtocolTCP, DestinationPort: 80})
		if got.Route != want {
			t.Errorf("the route to %s is %q; want %q", to, got.Route, want)
		}
		if wantAllowed := to != "203.0.113.1"; got.Allowed != wantAllowed && to != "10.20.0.5" {
			t.Errorf("to %s: allowed %v; want %v: %v", to, got.Allowed, wantAllowed, got.Decisions)
		}
	}
	v.RouteTables = []core.RouteTable{{Name: "t", Routes: []core.Route{
		{Name: "on", Prefix: prefix("10.7.0.0/16"), NextHop: core.HopUplink}, {Name: "off", Prefix: prefix("172.16.0.0/12"), NextHop: core.HopUplink},
	}}}
	v.Subnets[0].RouteTable = "t"
	var lines []string
	for _, r := range EffectiveRoutes(v, v.Subnets[0]) {
		if r.NextHop == core.HopUplink {
			lines = append(lines, r.String()+"; "+r.Reason)
		}
	}
	want := []string{
		"system route 10.0.0.0/8 → Uplink office; ", "route t/on (10.7.0.0/16 → Uplink office); ",
		"route t/off (172.16.0.0/12 → Uplink); virtual network corp has no uplink that leads to 172.16.0.0/12",
		"system route 192.168.10.0/24 → Uplink office; ",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("the routes are\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}
