package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
)

// TestQuestionsOfTheResolver: only to the network's servers, and under the rules that name
// the resolver as their source.
func TestQuestionsOfTheResolver(t *testing.T) {
	in := corpInput()
	in.VNet.DNS.Servers = []string{"192.0.2.53:53", "host", "10.20.7.7:5353"}
	in.VNet.NSGs[0].Rules = append(in.VNet.NSGs[0].Rules, core.SecurityRule{
		Name: "no-public-dns", Priority: 200, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolAny,
		Source: []string{TagPlatformDNS}, Destination: []string{"192.0.2.0/24"},
	})
	text, err := CompileVNet(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"ip saddr @resolvers ip daddr . udp dport { 10.20.7.7 . 5353, 192.0.2.53 . 53 } goto resolver_questions\n",
		"ip saddr @resolvers ip daddr . tcp dport { 10.20.7.7 . 5353, 192.0.2.53 . 53 } goto resolver_questions\n",
		"ip saddr 10.20.0.0/24 jump nsg_gateways_questions\n",
		`counter drop comment "gateways/no-public-dns (200) outbound"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	in.VNet.DNS.Servers = []string{"host"}
	in.Resolvers = []netip.Addr{addr("10.20.0.2")}
	if text, err = CompileVNet(in); err != nil || strings.Contains(text, "resolver_questions") {
		t.Errorf("without servers of its own: %v\n%s", err, text)
	}
}
