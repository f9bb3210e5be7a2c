package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
)

func TestEffectiveRules(t *testing.T) {
	t.Parallel()
	own, other := netip.MustParseAddr("10.20.0.4"), netip.MustParseAddr("10.20.0.5")
	v := core.GoalVNet{
		Name: "corp", AddressSpace: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")},
		Peers: []core.GoalPeer{{Name: "hub", AddressSpace: []netip.Prefix{netip.MustParsePrefix("10.30.0.0/16")}}},
		NSGs: []core.NetworkSecurityGroup{
			{Name: "gw", Rules: []core.SecurityRule{
				{Name: "late", Priority: 300, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolTCP, DestinationPorts: []string{"22"}},
				{Name: "early", Priority: 200, Direction: core.Outbound, Access: core.Allow, Protocol: core.ProtocolTCP,
					Source: []string{"bi", "10.20.9.9"}, Destination: []string{"VirtualNetwork"}},
			}},
			{Name: "nic", Rules: []core.SecurityRule{
				{Name: "in", Priority: 100, Direction: core.Inbound, Access: core.Allow, Protocol: core.ProtocolAny, Source: []string{"OnPremises"}},
			}},
		},
		ASGs:        []core.GoalASG{{Name: "bi", Addresses: []netip.Addr{other, own}}},
		ServiceTags: []core.ServiceTag{{Name: "OnPremises", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")}}},
		NICs:        []core.GoalNIC{{Address: own, Gateway: "corp-bi", NSG: "nic"}},
	}
	subnet := core.Subnet{Name: "gateways", Prefix: netip.MustParsePrefix("10.20.0.0/24"), NSG: "gw"}
	defaults := func(level core.RuleLevel, nsg string, d core.Direction) (out []string) {
		for _, r := range DefaultRules(d) {
			out = append(out, fmt.Sprintf("%s %s/%s %d %s default", d, nsg, r.Name, r.Priority, level))
		}
		return out
	}
	subnets := append([]string{"Outbound gw/early 200 subnet", "Outbound gw/late 300 subnet"}, defaults(core.LevelSubnet, "gw", core.Outbound)...)
	subnets = append(subnets, defaults(core.LevelSubnet, "gw", core.Inbound)...)
	nicIn := append([]string{"Inbound nic/in 100 NIC"}, defaults(core.LevelNIC, "nic", core.Inbound)...)
	for name, c := range map[string]struct {
		subnet core.Subnet
		a      netip.Addr
		want   []string
	}{
		"a member with an NSG of its own": {subnet, own, append(append(defaults(core.LevelNIC, "nic", core.Outbound), subnets...), nicIn...)},
		"a member without":                {subnet, other, subnets},
		"no NSG at all":                   {core.Subnet{Name: "free"}, other, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, r := range EffectiveRules(v, c.subnet, c.a) {
				line := fmt.Sprintf("%s %s/%s %d %s", r.Direction, r.NSG, r.Name, r.Priority, r.Level)
				if r.Default {
					line += " default"
				}
				got = append(got, line)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	early := EffectiveRules(v, subnet, other)[0]
	if got := fmt.Sprintf("%v %v %s", early.SourcePrefixes, early.DestinationPrefixes, strings.Join(early.SourcePorts, ",")); got != "[10.20.0.4/32 10.20.0.5/32] [10.20.0.0/16 10.30.0.0/16] *" {
		t.Errorf("what groups and tags stand for: %s", got)
	}
}
