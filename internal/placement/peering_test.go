package placement_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/placement"
)

func network(name, space string, remotes ...string) core.Stored {
	v := &core.VirtualNetwork{Name: name, AddressSpace: []netip.Prefix{netip.MustParsePrefix(space)},
		Subnets: []core.Subnet{{Name: "s", Prefix: netip.PrefixFrom(netip.MustParsePrefix(space).Addr(), 24), RouteTable: "private"}}}
	for _, r := range remotes {
		v.Peerings = append(v.Peerings, core.Peering{Name: "to-" + r, Remote: r})
	}
	return core.Stored{Tenant: core.DefaultTenant, UID: "uid-" + name, Spec: v}
}

func endpoint(name, vnet, address, dns string) core.Stored {
	return core.Stored{Tenant: core.DefaultTenant, UID: "uid-" + name, Spec: &core.PrivateEndpoint{
		Name: name, VNet: vnet, Subnet: "s", Address: netip.MustParseAddr(address), Target: "127.0.0.1:5432", DNSName: dns,
	}}
}

// TestPeersOfAGateway gives a host a network with a gateway and the peers of that, but not
// their peers, nor a network whose peering is one-sided.
func TestPeersOfAGateway(t *testing.T) {
	set := []core.Stored{
		network("spoke", "10.20.0.0/16", "hub", "aside"), network("hub", "10.30.0.0/16", "far", "spoke"),
		network("far", "10.40.0.0/16", "hub"), network("aside", "10.50.0.0/16"),
		{Tenant: core.DefaultTenant, UID: "uid-g", Spec: &core.Gateway{Name: "g", VNet: "spoke", Subnet: "s"}},
		{Tenant: core.DefaultTenant, UID: "uid-t", Spec: &core.RouteTable{Name: "private"}},
		{Tenant: core.DefaultTenant, UID: "uid-o", Spec: &core.RouteTable{Name: "other"}},
		{Tenant: core.DefaultTenant, UID: "uid-z", Spec: &core.PrivateDNSZone{Name: "corp.internal", VNets: []string{"spoke"}}},
		endpoint("own", "spoke", "10.20.0.9", "db.corp.internal"), endpoint("theirs", "hub", "10.30.0.9", "db.corp.internal"),
		endpoint("hubs", "hub", "10.30.0.8", "hub.corp.internal"), endpoint("fars", "far", "10.40.0.8", "far.corp.internal"),
	}
	got := map[string][]string{}
	var records []string
	for _, v := range placement.Goal("h", 1, set, nil).VNets {
		got[v.Name] = []string{}
		for _, p := range v.Peers {
			got[v.Name] = append(got[v.Name], p.Name+" "+p.UID+" "+p.AddressSpace[0].String())
		}
		if len(v.RouteTables) != 1 || v.RouteTables[0].Name != "private" {
			t.Errorf("the route tables of %s: %v", v.Name, v.RouteTables)
		}
		for _, z := range v.Zones {
			for _, r := range z.Records {
				records = append(records, r.Name+" "+r.Address.String())
			}
		}
	}
	want := map[string][]string{"spoke": {"hub uid-hub 10.30.0.0/16"}, "hub": {"spoke uid-spoke 10.20.0.0/16"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"db.corp.internal 10.20.0.9", "hub.corp.internal 10.30.0.8"}, records); diff != "" {
		t.Errorf("names of endpoints: %s", diff)
	}
}
