package service

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

func TestNextHop(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(routedBy(t, noData, true)...)
	way := func(hop core.NextHop, through, route, reason string) core.NextHopTo {
		return core.NextHopTo{NextHop: hop, Through: through, Route: route, Reason: reason}
	}
	for _, c := range []struct {
		name string
		in   core.Check
		want core.NextHopTo
		by   string // the private endpoint that answers
	}{
		{"an endpoint that a route closes", core.Check{Gateway: "corp-bi", Host: "orders.corp.internal"},
			way(core.HopNone, "", "route private/no-data (10.20.1.0/24 → None)", "route private/no-data (10.20.1.0/24 → None)"), "corp/orders-db"},
		{"the same from another subnet", core.Check{VNet: "corp", Subnet: "data", Host: "10.20.1.4"},
			way(core.HopVnetLocal, "", "system route 10.20.0.0/16 → VnetLocal", ""), "corp/orders-db"},
		{"a peer's endpoint", core.Check{Gateway: "corp-bi", Host: "10.30.0.9"},
			way(core.HopPeering, "hub", "system route 10.30.0.0/16 → Peering hub", ""), "hub/far"},
		{"outside", core.Check{Gateway: "corp-bi", Host: "198.51.100.7"},
			way(core.HopInternet, "egress", "system route 0.0.0.0/0 → Internet egress", ""), ""},
		{"outside, from a subnet without a way out", core.Check{VNet: "corp", Subnet: "data", Host: "198.51.100.7"},
			way(core.HopNone, "", "system route 0.0.0.0/0 → None", "198.51.100.7 is outside the virtual network and subnet data names no NAT gateway"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.in.NextHop = true
			out, err := r.svc.Check(r.ctx, c.in)
			if err != nil {
				t.Fatal(err)
			}
			by := ""
			if out.Endpoint != nil {
				by = out.Endpoint.VNet + "/" + out.Endpoint.Name
			}
			if diff := cmp.Diff(c.want, *out.NextHop); diff != "" || by != c.by {
				t.Errorf("answers: %q, want %q\n%s", by, c.by, diff)
			}
		})
	}
}

func TestEffectiveRulesOfAGatewayAndOfASubnet(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	for name, c := range map[string]struct {
		in    core.Check
		first string
	}{
		"gateway": {core.Check{Gateway: "corp-bi"}, "gateways/allow-postgres"},
		"subnet":  {core.Check{VNet: "corp", Subnet: "data"}, "data/AllowVnetOutBound"},
	} {
		c.in.EffectiveRules = true
		out, err := r.svc.Check(r.ctx, c.in)
		if err != nil || len(out.Rules) == 0 || out.Rules[0].NSG+"/"+out.Rules[0].Name != c.first {
			t.Errorf("%s: %v, %+v", name, err, out.Rules)
		}
	}
	for says, in := range map[string]core.Check{
		"names no gateway":   {EffectiveRules: true, VNet: "corp"},
		"names no address":   {NextHop: true, Gateway: "corp-bi"},
		"from a gateway":     {Gateway: "corp-bi", VNet: "corp", Host: "10.20.1.4", Port: 1},
		"has no subnet":      {EffectiveRules: true, VNet: "corp", Subnet: "none"},
		"of a private zone":  {NextHop: true, Gateway: "corp-bi", Host: "db.example.com"},
		"VirtualNetwork/lab": {EffectiveRoutes: true, VNet: "lab", Subnet: "s"},
	} {
		_, err := r.svc.Check(r.ctx, in)
		if err == nil || !strings.Contains(errs.As(err).Error(), says) {
			t.Errorf("want %q, got %v", says, err)
		}
	}
}
