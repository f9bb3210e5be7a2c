package service

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// routedBy is the example with a route table for the subnet gateways and a peering to hub,
// which has a private endpoint.
func routedBy(t *testing.T, routes string, back bool) []Document {
	t.Helper()
	docs := example(t)
	for i := range docs {
		if docs[i].Kind == core.KindVirtualNetwork {
			spec := strings.Replace(string(canonical(t, docs[i].Spec)), `"name":"gateways",`, `"name":"gateways","routeTable":"private",`, 1)
			docs[i].Spec = []byte(strings.Replace(spec, `{`, `{"peerings":[{"name":"p","remote":"hub"}],`, 1))
		}
	}
	hub := `{"name":"hub","addressSpace":["10.30.0.0/16"],"subnets":[{"name":"s","prefix":"10.30.0.0/24"}]`
	if back {
		hub += `,"peerings":[{"name":"back","remote":"corp"}]`
	}
	return append(docs,
		Document{core.KindVirtualNetwork, json.RawMessage(hub + "}")},
		Document{core.KindRouteTable, json.RawMessage(`{"name":"private","routes":[` + routes + `]}`)},
		Document{core.KindPrivateEndpoint, json.RawMessage(`{"name":"far","vnet":"hub","subnet":"s","address":"10.30.0.9","target":"127.0.0.1:5432"}`)})
}

const noData = `{"name":"no-data","prefix":"10.20.1.0/24","nextHop":"None"}`

func (r *rig) dryCheck(host string) core.CheckResult {
	r.t.Helper()
	out, err := r.svc.Check(r.ctx, core.Check{Gateway: "corp-bi", Host: host, Port: 5432, Dry: true})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func TestCheckNamesTheRoute(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(routedBy(t, noData, true)...)
	for host, want := range map[string]struct {
		allowed bool
		route   string
	}{
		"10.20.1.4":    {false, "route: none: route private/no-data (10.20.1.0/24 → None)"},
		"198.51.100.7": {true, "route: NAT gateway egress, by system route 0.0.0.0/0 → Internet egress"},
		"10.30.0.8":    {false, "route: Peering hub, by system route 10.30.0.0/16 → Peering hub"}, // gateways/deny-rest-of-vnet
	} {
		got := r.dryCheck(host)
		if got.Allowed != want.allowed || got.Reasons[len(got.Reasons)-1] != want.route {
			t.Errorf("%s: %+v; want %+v", host, got, want)
		}
	}
	out, err := r.svc.Check(r.ctx, core.Check{Gateway: "corp-bi", EffectiveRoutes: true})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range out.Routes {
		got = append(got, e.String())
	}
	want := []string{
		"system route 0.0.0.0/0 → Internet egress", "system route 10.20.0.0/16 → VnetLocal", "route private/no-data (10.20.1.0/24 → None)",
		"system route 10.30.0.0/16 → Peering hub", "system route 127.0.0.0/8 → None", "system route 169.254.0.0/16 → None", "system route 224.0.0.0/4 → None",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestErrorNamesTheRoute: a member that could not connect says which route decided.
func TestErrorNamesTheRoute(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(routedBy(t, noData, true)...)
	r.host()
	r.member(noConnect)
	_, err := r.query()
	e := errs.As(err)
	if err == nil || !strings.Contains(e.Message, "no route to 10.20.1.4 (none: route private/no-data (10.20.1.0/24 → None))") ||
		!strings.Contains(e.Hint, "change route no-data of RouteTable/private") {
		t.Errorf("%+v", e)
	}
}

func TestPeersOnDifferentHosts(t *testing.T) {
	t.Parallel()
	at := func(vnet, host string) core.Member { return core.Member{VNetUID: vnet, Host: host} }
	hub := core.Stored{UID: "hub", Spec: &core.VirtualNetwork{Name: "hub"}}
	const apart = "members on different hosts don't reach each other"
	for name, c := range map[string]struct {
		members []core.Member
		want    string
	}{
		"nothing runs":       {nil, ""},
		"one side runs":      {[]core.Member{at("corp", "h1"), at("corp", "h2")}, ""},
		"on one host":        {[]core.Member{at("corp", "h1"), at("hub", "h1")}, ""},
		"each on its own":    {[]core.Member{at("corp", "h1"), at("hub", "h2")}, "its members are on h1, those of VirtualNetwork/hub on h2: " + apart},
		"some on one":        {[]core.Member{at("corp", "h2"), at("corp", "h1"), at("hub", "h1")}, "its members are on h1, h2, those of VirtualNetwork/hub on h1: " + apart},
		"another network's":  {[]core.Member{at("corp", "h1"), at("hub", "h1"), at("lab", "h2")}, ""},
		"both on both hosts": {[]core.Member{at("corp", "h1"), at("corp", "h2"), at("hub", "h1"), at("hub", "h2")}, apart},
	} {
		got := hostsApart(core.Stored{UID: "corp"}, hub, c.members)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q; want %q", name, got, c.want)
		}
	}
}

func TestStateOfAPeering(t *testing.T) {
	t.Parallel()
	for back, want := range map[bool]PeeringStatus{
		true:  {Name: "p", Remote: "hub", State: core.PeeringConnected},
		false: {Name: "p", Remote: "hub", State: core.PeeringInitiated, Reason: "VirtualNetwork/hub has no peering with remote corp"},
	} {
		r := newRig(t)
		r.apply(routedBy(t, "", back)...)
		view, err := r.svc.Get(r.ctx, string(core.KindVirtualNetwork), "corp")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]PeeringStatus{want}, view.Status.(VNetStatus).Peerings); diff != "" {
			t.Error(diff)
		}
	}
}
