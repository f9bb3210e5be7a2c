package service

import (
	"net/netip"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// TestAnErrorOfANameSaysWhatStandsInTheWay: a rule, a missing route, or nothing of both.
func TestAnErrorOfANameSaysWhatStandsInTheWay(t *testing.T) {
	vnet := core.GoalVNet{
		Name: "corp", AddressSpace: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")},
		Subnets: []core.Subnet{{Name: "gateways", Prefix: netip.MustParsePrefix("10.20.0.0/24"), NSG: "gateways"}},
		NSGs: []core.NetworkSecurityGroup{{Name: "gateways", Rules: []core.SecurityRule{{
			Name: "no-dns", Priority: 100, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolAny,
			Destination: []string{"PlatformDNS", "198.51.100.0/24"},
		}}}},
	}
	allowed := vnet
	allowed.Subnets = []core.Subnet{{Name: "gateways", Prefix: vnet.Subnets[0].Prefix}}
	gw, m := &core.Gateway{Name: "bi", Subnet: "gateways"}, core.Member{Gateway: "bi", Address: netip.MustParseAddr("10.20.0.4")}
	for name, c := range map[string]struct {
		vnet    core.GoalVNet
		servers []string
		message string
		hint    string
	}{
		"the resolver, denied": {vnet, nil, "db can't be resolved; questions to 10.20.0.2:53 are denied by rule gateways/no-dns (100) at subnet gateways, outbound",
			`"sluice check -g bi --protocol udp --dry --to 10.20.0.2:53" shows every rule on the way`},
		"a source's server, denied": {vnet, []string{"198.51.100.53:53"}, "db can't be resolved; questions to 198.51.100.53:53 are denied by rule gateways/no-dns (100) at subnet gateways, outbound",
			`"sluice check -g bi --protocol udp --dry --to 198.51.100.53:53" shows every rule on the way`},
		"the resolver, allowed": {allowed, nil, "db can't be resolved", "try"},
	} {
		t.Run(name, func(t *testing.T) {
			err := errs.New(errs.Unavailable, "db can't be resolved").WithHint("try").WithStep(errs.StepResolve)
			got := errs.As(explainResolve(c.vnet, gw, m, memberapi.Source{DNSServers: c.servers}, err))
			if got.Message != c.message || got.Hint != c.hint {
				t.Errorf("got %q, hint %q", got.Message, got.Hint)
			}
		})
	}
	got := errs.As(explainResolve(allowed, gw, m, memberapi.Source{DNSServers: []string{"198.51.100.53:53"}}, errs.New(errs.Unavailable, "x")))
	if want := "give the subnet a NAT gateway, or name DNS servers that the network reaches"; got.Hint != want {
		t.Errorf("without a route: %q, hint %q", got.Message, got.Hint)
	}
}
