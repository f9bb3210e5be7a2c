package policy

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sluice-gateway/sluice/internal/core"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestRulesetsAreAsReviewed(t *testing.T) {
	for name, compile := range map[string]func() (string, error){
		"corp.nft": func() (string, error) { return CompileVNet(corpInput()) },
		"buckets.nft": func() (string, error) {
			in := corpInput()
			in.BucketsFrom = -1
			in.VNet.NICs = []core.GoalNIC{{Address: addr("10.20.0.4"), Gateway: "corp-bi", NSG: "data"}}
			in.VNet.ASGs = []core.GoalASG{{Name: "bi", Addresses: []netip.Addr{addr("10.20.0.4"), addr("10.20.0.5")}}}
			in.VNet.ServiceTags = []core.ServiceTag{{Name: "OnPremises", Prefixes: []netip.Prefix{prefix("192.168.0.0/16")}}}
			in.VNet.NSGs[1].Rules = append(in.VNet.NSGs[1].Rules,
				core.SecurityRule{Name: "groups", Priority: 90, Direction: core.Inbound, Access: core.Allow, Protocol: core.ProtocolAny, Source: []string{"bi"}, DestinationPorts: []string{"80", "443-500"}},
				core.SecurityRule{Name: "mixed", Priority: 95, Direction: core.Inbound, Access: core.Deny, Protocol: core.ProtocolTCP, Source: []string{"bi", "OnPremises", "10.20.9.9"}, DestinationPorts: []string{"443"}},
				core.SecurityRule{Name: "tag", Priority: 96, Direction: core.Inbound, Access: core.Deny, Protocol: core.ProtocolAny, Source: []string{"OnPremises"}})
			return CompileVNet(in)
		},
		"masquerade.nft": func() (string, error) { return CompileNAT(natInput()) },
		"spread.nft": func() (string, error) {
			return CompileNAT(natInput(addr("198.51.100.9"), addr("198.51.100.7"), addr("198.51.100.8")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := compile()
			if err != nil {
				t.Fatal(err)
			}
			compareGolden(t, filepath.Join("testdata", name), got)
		})
	}
}

func compareGolden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the text is not that of %s (run with -update if it should be):\n%s", path, diff)
	}
}

func natInput(snat ...netip.Addr) NATInput {
	return NATInput{Inside: "in0", Outside: "out0", SNAT: snat, InsidePrefixes: []netip.Prefix{prefix("10.20.0.0/24")}}
}

func TestOrderOfTheInputDoesNotShow(t *testing.T) {
	in := corpInput()
	want, err := CompileVNet(in)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(in.Ports)
	slices.Reverse(in.Resolvers)
	slices.Reverse(in.VNet.Subnets)
	slices.Reverse(in.VNet.NSGs)
	for _, n := range in.VNet.NSGs {
		slices.Reverse(n.Rules)
	}
	got, err := CompileVNet(in)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
