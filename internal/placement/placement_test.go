package placement

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestChooseAddress(t *testing.T) {
	tests := []struct {
		name   string
		subnet string
		after  netip.Addr
		taken  []string
		want   string // "" means exhausted
	}{
		{"first of a /24 skips the reserved ones", "10.0.0.0/24", netip.Addr{}, nil, "10.0.0.4"},
		{"next after the last one handed out", "10.0.0.0/24", addr("10.0.0.9"), nil, "10.0.0.10"},
		{"round to the start after the last usable", "10.0.0.0/24", addr("10.0.0.254"), []string{"10.0.0.4"}, "10.0.0.5"},
		{"never the broadcast address", "10.0.0.0/24", addr("10.0.0.253"), []string{"10.0.0.254"}, "10.0.0.4"},
		{"a /29 has three", "10.0.0.8/29", netip.Addr{}, []string{"10.0.0.12", "10.0.0.13"}, "10.0.0.14"},
		{"a full /29", "10.0.0.8/29", netip.Addr{}, []string{"10.0.0.12", "10.0.0.13", "10.0.0.14"}, ""},
		{"an address of another subnet says nothing", "10.0.0.0/24", addr("10.9.0.77"), nil, "10.0.0.4"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			prefix := netip.MustParsePrefix(tt.subnet)
			pool := SubnetPool(prefix)
			for _, a := range tt.taken {
				if !pool.Take(addr(a)) {
					t.Fatalf("%s could not be taken", a)
				}
			}
			got, err := ChooseAddress(core.Subnet{Name: "s", Prefix: prefix}, pool, tt.after, time.Now())
			if tt.want == "" {
				if errs.ClassOf(err) != errs.Exhausted {
					t.Fatalf("got %v, %v; want an error of class exhausted", got, err)
				}
				return
			}
			if err != nil || got != addr(tt.want) {
				t.Fatalf("got %v, %v; want %s", got, err, tt.want)
			}
		})
	}
}

// TestExhaustionSaysWhatIsAwaited: who waits for an address learns when one is free.
func TestExhaustionSaysWhatIsAwaited(t *testing.T) {
	prefix, now := netip.MustParsePrefix("10.0.0.8/29"), time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	pool := SubnetPool(prefix)
	for _, a := range []string{"10.0.0.12", "10.0.0.13", "10.0.0.14"} {
		pool.Take(addr(a))
	}
	pool.Rest(addr("10.0.0.13"), now.Add(time.Minute))
	_, err := ChooseAddress(core.Subnet{Name: "s", Prefix: prefix}, pool, netip.Addr{}, now)
	e := errs.As(err)
	if e == nil || !strings.Contains(e.Message, "2 are leased, 1 rest") || !strings.Contains(e.Hint, "2026-11-23T10:01:00Z") {
		t.Errorf("got %v, hint %q", err, e.Hint)
	}
	if a, err := ChooseAddress(core.Subnet{Name: "s", Prefix: prefix}, pool, netip.Addr{}, now.Add(time.Minute)); err != nil || a != addr("10.0.0.13") {
		t.Errorf("a minute later: %v, %v", a, err)
	}
}

func TestGoal(t *testing.T) {
	stored := func(uid string, r core.Resource) core.Stored {
		return core.Stored{Tenant: "t", UID: uid, Spec: r}
	}
	vnet := &core.VirtualNetwork{Name: "corp", Subnets: []core.Subnet{{Name: "s", NSG: "n"}}}
	resources := []core.Stored{
		stored("v1", vnet), stored("v2", &core.VirtualNetwork{Name: "unused"}),
		stored("n1", &core.NetworkSecurityGroup{Name: "n"}), stored("n2", &core.NetworkSecurityGroup{Name: "other"}),
		stored("g1", &core.Gateway{Name: "g", VNet: "corp", Subnet: "s"}),
		stored("z1", &core.PrivateDNSZone{Name: "corp.internal", VNets: []string{"corp"}}),
		stored("e1", &core.PrivateEndpoint{Name: "db", VNet: "corp", Subnet: "s", Address: addr("10.0.1.4"), Target: "127.0.0.1:5432", DNSName: "db.corp.internal"}),
		stored("e2", &core.PrivateEndpoint{Name: "far", VNet: "unused", Address: addr("10.0.1.4"), Target: "127.0.0.1:5432", DNSName: "x.corp.internal"}),
	}
	members := []core.Member{
		{ID: "m1", Host: "h", State: core.MemberReady, VNetUID: "v1"},
		{ID: "m2", Host: "h", State: core.MemberLeaving, VNetUID: "v1"},
		{ID: "m3", Host: "other", State: core.MemberReady, VNetUID: "v1"},
	}
	got := Goal("h", 7, resources, members)
	want := core.GoalState{
		Version: 7,
		VNets: []core.GoalVNet{{
			UID: "v1", Tenant: "t", Name: "corp", Subnets: vnet.Subnets,
			NSGs:      []core.NetworkSecurityGroup{{Name: "n"}},
			Endpoints: []core.GoalEndpoint{{UID: "e1", Name: "db", Subnet: "s", Address: addr("10.0.1.4"), Port: 5432, Target: "127.0.0.1:5432"}},
			Zones:     []core.GoalZone{{Name: "corp.internal", Records: []core.GoalRecord{{Name: "db.corp.internal", Address: addr("10.0.1.4")}}}},
		}},
		Members: []core.GoalMember{{ID: "m1", VNetUID: "v1"}},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("goal state (-want +got):\n%s", diff)
	}
}

func TestGoalResolvesGroups(t *testing.T) {
	stored := func(uid string, r core.Resource) core.Stored { return core.Stored{Tenant: "t", UID: uid, Spec: r} }
	vnet := &core.VirtualNetwork{Name: "corp", Subnets: []core.Subnet{{Name: "s"}}}
	set := []core.Stored{
		stored("v1", vnet),
		stored("a1", &core.ApplicationSecurityGroup{Name: "web"}), stored("a2", &core.ApplicationSecurityGroup{Name: "idle"}),
		stored("t1", &core.ServiceTag{Name: "OnPremises"}), stored("t2", &core.ServiceTag{Name: "Unnamed"}),
		stored("n1", &core.NetworkSecurityGroup{Name: "nic", Rules: []core.SecurityRule{{Source: []string{"web"}, Destination: []string{"OnPremises"}}}}),
		stored("g1", &core.Gateway{Name: "g", VNet: "corp", NetworkSecurityGroup: "nic", ApplicationSecurityGroups: []string{"web", "idle"}}),
		stored("g2", &core.Gateway{Name: "plain", VNet: "corp"}),
		stored("e1", &core.PrivateEndpoint{Name: "db", VNet: "corp", Address: addr("10.0.1.4"), Target: "h:1", ApplicationSecurityGroups: []string{"web"}}),
	}
	members := []core.Member{
		{Gateway: "g", Host: "a", State: core.MemberReady, VNetUID: "v1", Address: addr("10.0.0.9")},
		{Gateway: "g", Host: "b", State: core.MemberPlaced, VNetUID: "v1", Address: addr("10.0.0.4")},
		{Gateway: "g", Host: "a", State: core.MemberLeaving, VNetUID: "v1", Address: addr("10.0.0.5")},
		{Gateway: "g", Host: "a", State: core.MemberReady, VNetUID: "v2", Address: addr("10.0.0.6")},
		{Gateway: "plain", Host: "a", State: core.MemberReady, VNetUID: "v1", Address: addr("10.0.0.7")},
	}
	got := VNet(set[0], vnet, set, members)
	want := core.GoalVNet{
		UID: "v1", Tenant: "t", Name: "corp", Subnets: vnet.Subnets, Endpoints: got.Endpoints,
		NSGs:        []core.NetworkSecurityGroup{*set[5].Spec.(*core.NetworkSecurityGroup)},
		ASGs:        []core.GoalASG{{Name: "web", Addresses: []netip.Addr{addr("10.0.0.4"), addr("10.0.0.9"), addr("10.0.1.4")}}},
		ServiceTags: []core.ServiceTag{{Name: "OnPremises"}},
		NICs:        []core.GoalNIC{{Address: addr("10.0.0.4"), Gateway: "g", NSG: "nic"}, {Address: addr("10.0.0.9"), Gateway: "g", NSG: "nic"}},
	}
	same := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(want, got, same, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("virtual network (-want +got):\n%s", diff)
	}
	AddMember(&got, set[6].Spec.(*core.Gateway), addr("10.0.0.4"))
	if diff := cmp.Diff(want.NICs, got.NICs, same); diff != "" || len(got.ASGs[0].Addresses) != 3 {
		t.Errorf("the same member again: %s %v", diff, got.ASGs)
	}
}
