package placement

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

func TestUplinkHosts(t *testing.T) {
	host := func(name string, connected bool) core.Host { return core.Host{Name: name, Connected: connected} }
	all := []core.Host{host("a", true), host("b", true), host("c", true), host("d", false)}
	for name, c := range map[string]struct {
		uplinks []string // the hosts that have one each
		want    []string
	}{
		"no uplink":                {nil, []string{"a", "b", "c", "d"}},
		"one host":                 {[]string{"b"}, []string{"b"}},
		"hosts with as many":       {[]string{"c", "a"}, []string{"a", "c"}},
		"the host with the most":   {[]string{"b", "c", "b"}, []string{"b"}},
		"that one is not there":    {[]string{"d", "d", "c"}, []string{"c"}},
		"none of them is there":    {[]string{"d", "elsewhere"}, nil},
		"one that nobody ever saw": {[]string{"elsewhere"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			v := &core.VirtualNetwork{Name: "plant"}
			for _, h := range c.uplinks {
				v.Uplinks = append(v.Uplinks, core.Uplink{Name: "u", Host: h})
			}
			got, err := UplinkHosts(v, "gateways", all)
			var names []string
			for _, h := range got {
				names = append(names, h.Name)
			}
			if diff := cmp.Diff(c.want, names); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if c.want == nil && (errs.ClassOf(err) != errs.Unavailable || !strings.Contains(err.Error(), "elsewhere") || !strings.Contains(err.Error(), "plant")) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func TestUplinkHostsOfASubnetByDHCP(t *testing.T) {
	dhcp := core.UplinkAddressing{Mode: core.AddressingDHCP, Subnet: "gateways"}
	v := &core.VirtualNetwork{Name: "plant", Uplinks: []core.Uplink{{Name: "x", Host: "a"}, {Name: "y", Host: "a"}, {Name: "z", Host: "b", Addressing: dhcp}}}
	all := []core.Host{{Name: "a", Connected: true}, {Name: "b", Connected: true}}
	for subnet, want := range map[string]string{"gateways": "b", "others": "a"} {
		if got, err := UplinkHosts(v, subnet, all); err != nil || len(got) != 1 || got[0].Name != want {
			t.Errorf("for subnet %s: %v, %v; want %s", subnet, got, err, want)
		}
	}
	if _, err := UplinkHosts(v, "gateways", all[:1]); errs.ClassOf(err) != errs.Unavailable || !strings.Contains(err.Error(), "they are on b") {
		t.Errorf("without that host: %v", err)
	}
}

func TestGoalMarksUplinksOfItsHost(t *testing.T) {
	v := &core.VirtualNetwork{Name: "plant", Uplinks: []core.Uplink{{Name: "x", Host: "a"}, {Name: "y", Host: "b"}}}
	goal := Goal("b", 1, []core.Stored{{UID: "v", Spec: v}, {UID: "g", Spec: &core.Gateway{Name: "g", VNet: "plant"}}}, nil)
	if len(goal.VNets) != 1 || len(goal.VNets[0].Uplinks) != 2 || goal.VNets[0].Uplinks[0].Here || !goal.VNets[0].Uplinks[1].Here {
		t.Errorf("the goal of host b is %+v", goal.VNets)
	}
}
