package validate_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/validate"
)

func TestRules(t *testing.T) {
	rule := func(change func(r *core.SecurityRule)) func(*world) {
		return func(w *world) { change(&w.nsg.Rules[0]) }
	}
	many := func(n int) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = fmt.Sprintf("10.1.%d.%d", i/256, i%256)
		}
		return out
	}
	rules := func(n int) func(*world) {
		return func(w *world) {
			w.nsg.Rules = nil
			for i := range n {
				w.nsg.Rules = append(w.nsg.Rules, core.SecurityRule{Name: fmt.Sprintf("r%d", i), Priority: 100 + i,
					Direction: core.Inbound, Access: core.Allow, Protocol: core.ProtocolTCP})
			}
		}
	}
	const r0 = "NetworkSecurityGroup/rules rules[0]."
	const noAddress = " is no address, prefix or tag: Any, 10.0.0.4, 10.0.0.0/24, VirtualNetwork, Internet, LoadBalancer, PlatformDNS, PlatformTunnel; nor is there an ApplicationSecurityGroup or ServiceTag of this name"
	const noPort = " is no port: *, 5432 or 8000-8999, within 0 to 65535"
	run(t, map[string]testCase{
		"1000 rules":       {rules(1000), ""},
		"1001 rules":       {rules(1001), "NetworkSecurityGroup/rules rules: has 1001 rules, at most 1000 are possible"},
		"no name":          {rule(func(r *core.SecurityRule) { r.Name = "" }), r0 + `name: "" is not a rule's name: letters, digits and . _ -, a letter or digit first`},
		"name of 80":       {rule(func(r *core.SecurityRule) { r.Name = strings.Repeat("a", 80) }), ""},
		"name of 81":       {rule(func(r *core.SecurityRule) { r.Name = strings.Repeat("a", 81) }), r0 + "name: has 81 characters, at most 80 are possible"},
		"name with quotes": {rule(func(r *core.SecurityRule) { r.Name = `a"; drop` }), r0 + `name: "a\"; drop" is not a rule's name: letters, digits and . _ -, a letter or digit first`},
		"name twice":       {rule(func(r *core.SecurityRule) { r.Name = "c" }), "NetworkSecurityGroup/rules rules[2].name: rules[0] is named \"c\" too"},
		"priority 99":      {rule(func(r *core.SecurityRule) { r.Priority = 99 }), r0 + "priority: 99 is not a priority: a number from 100 to 4096"},
		"priority 4097":    {rule(func(r *core.SecurityRule) { r.Priority = 4097 }), r0 + "priority: 4097 is not a priority: a number from 100 to 4096"},
		"priority twice":   {rule(func(r *core.SecurityRule) { r.Priority = 4096 }), `NetworkSecurityGroup/rules rules[1].priority: rule "a" has the priority 4096 too; a priority is unique per direction`},
		"direction":        {rule(func(r *core.SecurityRule) { r.Direction = "outbound" }), r0 + `direction: "outbound" is none of Inbound, Outbound`},
		"no access":        {rule(func(r *core.SecurityRule) { r.Access = "" }), r0 + "access: is missing: one of Allow, Deny"},
		"protocol":         {rule(func(r *core.SecurityRule) { r.Protocol = "*" }), r0 + `protocol: "*" is none of TCP, UDP, ICMP, ESP, AH, Any`},
		"UDP":              {rule(func(r *core.SecurityRule) { r.Protocol = core.ProtocolUDP }), ""},
		"no addresses":     {rule(func(r *core.SecurityRule) { r.Source = nil }), ""},
		"every tag": {rule(func(r *core.SecurityRule) {
			r.Source = []string{"VirtualNetwork", "Internet", "LoadBalancer", "PlatformDNS", "PlatformTunnel"}
		}), ""},
		"any besides":  {rule(func(r *core.SecurityRule) { r.Source = []string{"Any", "Internet"} }), r0 + "source[0]: Any stands for every address: nothing can stand beside it"},
		"a name":       {rule(func(r *core.SecurityRule) { r.Source = []string{"db.corp"} }), r0 + `source[0]: "db.corp"` + noAddress},
		"tag's case":   {rule(func(r *core.SecurityRule) { r.Source = []string{"internet"} }), r0 + `source[0]: "internet"` + noAddress},
		"IPv6":         {rule(func(r *core.SecurityRule) { r.Source = []string{"fd00::1"} }), r0 + "source[0]: fd00::1 is not IPv4: virtual networks are IPv4 only"},
		"host bits":    {rule(func(r *core.SecurityRule) { r.Destination = []string{"10.0.0.1/24"} }), r0 + "destination[0]: 10.0.0.1/24 has host bits set"},
		"0.0.0.0/0":    {rule(func(r *core.SecurityRule) { r.Destination = []string{"0.0.0.0/0"} }), ""},
		"4000":         {rule(func(r *core.SecurityRule) { r.Source, r.Destination = many(4000), many(4000) }), ""},
		"4001":         {rule(func(r *core.SecurityRule) { r.Source = many(4001) }), r0 + "source: has 4001 addresses, at most 4000 are possible"},
		"ports":        {rule(func(r *core.SecurityRule) { r.SourcePorts = []string{"*", "0", "65535", "0-65535", "7-7"} }), ""},
		"port 65536":   {rule(func(r *core.SecurityRule) { r.SourcePorts = []string{"65536"} }), r0 + `sourcePorts[0]: "65536"` + noPort},
		"backwards":    {rule(func(r *core.SecurityRule) { r.SourcePorts = []string{"9-8"} }), r0 + `sourcePorts[0]: "9-8"` + noPort},
		"half a range": {rule(func(r *core.SecurityRule) { r.SourcePorts = []string{"9-"} }), r0 + `sourcePorts[0]: "9-"` + noPort},
		"a plus":       {rule(func(r *core.SecurityRule) { r.SourcePorts = []string{"+9"} }), r0 + `sourcePorts[0]: "+9"` + noPort},
		"empty port":   {rule(func(r *core.SecurityRule) { r.SourcePorts = []string{""} }), r0 + `sourcePorts[0]: ""` + noPort},
		"ICMP's port":  {rule(func(r *core.SecurityRule) { r.Protocol, r.DestinationPorts = core.ProtocolICMP, []string{"8"} }), r0 + "destinationPorts[0]: ICMP has no ports"},
		"Any's port":   {rule(func(r *core.SecurityRule) { r.Protocol = core.ProtocolAny }), ""},
	})
}

func TestNAT(t *testing.T) {
	public := func(as ...string) func(*world) { return func(w *world) { w.nat.PublicAddresses = as } }
	idle := func(d core.Duration) func(*world) { return func(w *world) { w.nat.IdleTimeout = d } }
	const p = "NATGateway/egress publicAddresses"
	run(t, map[string]testCase{
		"addresses and prefixes": {public("203.0.113.7", "198.51.100.0/29"), ""},
		"none":                   {public(), p + `: is missing: "host", or addresses and prefixes that are routed to the host`},
		"16":                     {public("203.0.113.0/28"), ""},
		"17":                     {public("203.0.113.0/28", "198.51.100.1"), p + ": has more than 16 addresses"},
		"very many":              {public("32.0.0.0/3", "64.0.0.0/3"), p + ": has more than 16 addresses"},
		"host and more":          {public("host", "203.0.113.7"), p + `: "host" can't stand beside addresses: traffic leaves either as the host or as them`},
		"name":                   {public("example"), p + `[0]: "example" is no public address: "host", 203.0.113.7 or 203.0.113.0/28`},
		"twice":                  {public("203.0.113.7", "203.0.113.0/29"), p + "[1]: 203.0.113.0/29 overlaps 203.0.113.7/32 in the same list"},
		"loopback":               {public("127.0.0.1"), p + "[0]: 127.0.0.1 overlaps loopback (127.0.0.0/8)"},
		"IPv6":                   {public("2001:db8::1"), p + "[0]: 2001:db8::1/128 is not IPv4: virtual networks are IPv4 only"},
		"private":                {public("10.20.9.9"), p + "[0]: 10.20.9.9/32 lies in the address space 10.20.0.0/16 of VirtualNetwork/corp: not a public address"},
		"4m":                     {idle(core.Duration(4 * time.Minute)), ""},
		"120m":                   {idle(core.Duration(120 * time.Minute)), ""},
		"below":                  {idle(core.Duration(4*time.Minute - 1)), "NATGateway/egress idleTimeout: 3m59.999999999s is not from 4m to 120m"},
		"above":                  {idle(core.Duration(121 * time.Minute)), "NATGateway/egress idleTimeout: 2h1m0s is not from 4m to 120m"},
		"never":                  {idle(core.Never), "NATGateway/egress idleTimeout: never is not from 4m to 120m"},
		"half a second":          {idle(core.Duration(4*time.Minute + time.Second/2)), "NATGateway/egress idleTimeout: 4m0.5s is not a number of whole seconds"},
		"another's": {func(w *world) {
			w.nat.PublicAddresses = []string{"203.0.113.0/29"}
			w.others = []core.Resource{&core.NATGateway{Name: "a", VNet: "corp", PublicAddresses: []string{"198.51.100.1", "203.0.113.7"}}}
		}, p + "[0]: 203.0.113.0/29 overlaps 203.0.113.7 of NATGateway/a: replies find one NAT gateway only"},
		"two as the host": {func(w *world) {
			w.others = []core.Resource{&core.NATGateway{Name: "a", VNet: "corp", PublicAddresses: []string{"host"}}}
		}, ""},
	})
}

func TestGroups(t *testing.T) {
	groups := func(change func(w *world, web *core.ApplicationSecurityGroup, on *core.ServiceTag)) func(*world) {
		return func(w *world) {
			web := &core.ApplicationSecurityGroup{Name: "web"}
			on := &core.ServiceTag{Name: "OnPremises", Prefixes: prefixes("192.168.0.0/16", "172.16.0.0/12")}
			w.others = append(w.others, web, on)
			w.gw.ApplicationSecurityGroups, w.gw.NetworkSecurityGroup = []string{"web"}, "rules"
			w.ep.ApplicationSecurityGroups = []string{"web"}
			w.nsg.Rules[0].Source, w.nsg.Rules[0].Destination = []string{"web", "10.0.0.0/8"}, []string{"OnPremises", "Internet", "web"}
			change(w, web, on)
		}
	}
	many := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf("g%d", i))
		}
		return out
	}
	type web = core.ApplicationSecurityGroup
	type tag = core.ServiceTag
	run(t, map[string]testCase{
		"used":               {groups(func(*world, *web, *tag) {}), ""},
		"missing in a rule":  {groups(func(w *world, _ *web, _ *tag) { w.nsg.Rules[0].Source[0] = "webb" }), `NetworkSecurityGroup/rules rules[0].source[0]: "webb" is no address, prefix or tag: Any, 10.0.0.4, 10.0.0.0/24, VirtualNetwork, Internet, LoadBalancer, PlatformDNS, PlatformTunnel; nor is there an ApplicationSecurityGroup or ServiceTag of this name`},
		"missing membership": {groups(func(w *world, _ *web, _ *tag) { w.gw.ApplicationSecurityGroups = []string{"x"} }), `Gateway/corp-bi applicationSecurityGroups[0]: there is no ApplicationSecurityGroup "x"`},
		"endpoint's too":     {groups(func(w *world, _ *web, _ *tag) { w.ep.ApplicationSecurityGroups = []string{"web", "x"} }), `PrivateEndpoint/db applicationSecurityGroups[1]: there is no ApplicationSecurityGroup "x"`},
		"membership twice":   {groups(func(w *world, _ *web, _ *tag) { w.gw.ApplicationSecurityGroups = []string{"web", "web"} }), `Gateway/corp-bi applicationSecurityGroups[1]: "web" is named already (applicationSecurityGroups[0])`},
		"missing NIC NSG":    {groups(func(w *world, _ *web, _ *tag) { w.gw.NetworkSecurityGroup = "x" }), `Gateway/corp-bi networkSecurityGroup: there is no NetworkSecurityGroup "x"`},
		"one name, two kinds": {groups(func(_ *world, _ *web, on *tag) { on.Name = "web" }), `NetworkSecurityGroup/rules rules[0].destination[0]: "OnPremises" is no address, prefix or tag: Any, 10.0.0.4, 10.0.0.0/24, VirtualNetwork, Internet, LoadBalancer, PlatformDNS, PlatformTunnel; nor is there an ApplicationSecurityGroup or ServiceTag of this name
ServiceTag/web name: ApplicationSecurityGroup/web has the name too: a rule could not tell them apart`},
		"built-in tag":       {func(w *world) { w.others = append(w.others, &tag{Name: "internet", Prefixes: prefixes("10.0.0.0/8")}) }, `ServiceTag/internet name: "internet" is built in: rules that name it mean Internet`},
		"group like Any":     {func(w *world) { w.others = append(w.others, &web{Name: "any"}) }, `ApplicationSecurityGroup/any name: "any" is built in: rules that name it mean Any`},
		"tag like a number":  {func(w *world) { w.others = append(w.others, &tag{Name: "10.0.0.1", Prefixes: prefixes("10.0.0.0/8")}) }, `ServiceTag/10.0.0.1 name: "10.0.0.1" is not a tag's name: letters, digits and . _ -, a letter first`},
		"tag without prefix": {func(w *world) { w.others = append(w.others, &tag{Name: "On"}) }, `ServiceTag/On prefixes: is missing: at least one prefix such as 10.20.0.0/16`},
		"tag with host bits": {func(w *world) { w.others = append(w.others, &tag{Name: "On", Prefixes: prefixes("10.0.0.1/8")}) }, `ServiceTag/On prefixes[0]: 10.0.0.1/8 has host bits set`},
		"tag of IPv6":        {func(w *world) { w.others = append(w.others, &tag{Name: "On", Prefixes: prefixes("fd00::/8")}) }, `ServiceTag/On prefixes[0]: fd00::/8 is not IPv4: virtual networks are IPv4 only`},
		"21 memberships": {func(w *world) {
			w.gw.ApplicationSecurityGroups = many(21)
			for _, n := range many(21) {
				w.others = append(w.others, &web{Name: n})
			}
		}, `Gateway/corp-bi applicationSecurityGroups: has 21 groups, an interface belongs to at most 20`},
		"3001 groups": {func(w *world) {
			for _, n := range many(3001) {
				w.others = append(w.others, &web{Name: n})
			}
		}, `ApplicationSecurityGroup/g3000 name: is one too many: at most 3000 of the kind ApplicationSecurityGroup are possible`},
		"5001 NSGs": {func(w *world) {
			for _, n := range many(5000) {
				w.others = append(w.others, &core.NetworkSecurityGroup{Name: n})
			}
		}, `NetworkSecurityGroup/g4999 name: is one too many: at most 5000 of the kind NetworkSecurityGroup are possible`},
	})
	w := valid()
	groups(func(*world, *web, *tag) {})(w)
	for _, c := range []struct {
		kind core.Kind
		name string
		want string
	}{
		{core.KindApplicationSecurityGroup, "web", "[NetworkSecurityGroup/rules rules[0].source[0] NetworkSecurityGroup/rules rules[0].destination[2] PrivateEndpoint/db applicationSecurityGroups[0] Gateway/corp-bi applicationSecurityGroups[0]]"},
		{core.KindServiceTag, "OnPremises", "[NetworkSecurityGroup/rules rules[0].destination[0]]"},
		{core.KindNetworkSecurityGroup, "rules", "[VirtualNetwork/corp subnets[0].nsg Gateway/corp-bi networkSecurityGroup]"},
	} {
		if got := fmt.Sprint(validate.DeleteBlockers(w.set(), c.kind, c.name)); got != c.want {
			t.Errorf("%s/%s: %s, want %s", c.kind, c.name, got, c.want)
		}
	}
}
