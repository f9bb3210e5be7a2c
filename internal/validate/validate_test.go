package validate_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/config"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/validate"
)

// world is a small valid set that each case spoils, or changes within the rules.
type world struct {
	vnet   *core.VirtualNetwork
	nsg    *core.NetworkSecurityGroup
	nat    *core.NATGateway
	zone   *core.PrivateDNSZone
	ep     *core.PrivateEndpoint
	gw     *core.Gateway
	ds     *core.DataSource
	others []core.Resource
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, prefix(s))
	}
	return out
}

func valid() *world {
	w := &world{
		vnet: &core.VirtualNetwork{
			Name: "corp", AddressSpace: prefixes("10.20.0.0/16"),
			Subnets: []core.Subnet{
				{Name: "gateways", Prefix: prefix("10.20.0.0/24"), Delegation: core.DelegationGateways, NSG: "rules", NATGateway: "egress"},
				{Name: "data", Prefix: prefix("10.20.1.0/24")},
			},
		},
		nsg: &core.NetworkSecurityGroup{Name: "rules", Rules: []core.SecurityRule{
			{Name: "a", Priority: 100, Direction: core.Outbound, Access: core.Allow, Protocol: core.ProtocolTCP,
				Source: []string{"Any"}, Destination: []string{"10.20.1.0/24", "10.0.0.4", "Internet"}, DestinationPorts: []string{"5432", "8000-8999"}},
			{Name: "b", Priority: 4096, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolAny},
			{Name: "c", Priority: 100, Direction: core.Inbound, Access: core.Deny, Protocol: core.ProtocolICMP, SourcePorts: []string{"*"}},
		}},
		nat:  &core.NATGateway{Name: "egress", VNet: "corp", PublicAddresses: []string{"host"}},
		zone: &core.PrivateDNSZone{Name: "corp.internal", VNets: []string{"corp"}},
		ep: &core.PrivateEndpoint{Name: "db", VNet: "corp", Subnet: "data", Address: netip.MustParseAddr("10.20.1.4"),
			Target: "127.0.0.1:5432", DNSName: "db.corp.internal"},
		gw: &core.Gateway{Name: "corp-bi", VNet: "corp", Subnet: "gateways"},
		ds: &core.DataSource{Name: "orders", Gateway: "corp-bi", Type: "postgres",
			Parameters:  map[string]string{"host": "db.corp.internal", "port": "5432", "database": "orders"},
			Credentials: core.Credentials{Kind: core.CredentialBasic, Username: "u"}},
	}
	return w
}

func (w *world) set() []core.Resource {
	out := append([]core.Resource{w.vnet, w.nsg, w.nat, w.zone, w.ep, w.gw, w.ds}, w.others...)
	for _, r := range out {
		validate.Defaults(r)
	}
	return out
}

func lines(problems []*errs.Error) string {
	var out []string
	for _, p := range problems {
		out = append(out, p.Object+" "+p.Field+": "+p.Message)
	}
	return strings.Join(out, "\n")
}

type testCase struct {
	change func(w *world)
	want   string // "" for accepted
}

// run checks each case: the exact problems, their class, and that nothing else is said.
func run(t *testing.T, cases map[string]testCase) {
	t.Helper()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := valid()
			c.change(w)
			problems := validate.Set(w.set())
			if diff := cmp.Diff(c.want, lines(problems)); diff != "" {
				t.Error(diff)
			}
			for _, p := range problems {
				if p.Class != errs.Invalid {
					t.Errorf("class %s", p.Class)
				}
			}
		})
	}
}

func TestValid(t *testing.T) {
	run(t, map[string]testCase{"the set that the cases change": {func(*world) {}, ""}})
	if got := validate.Set(nil); got != nil {
		t.Errorf("an empty set: %v", got)
	}
}

func TestExample(t *testing.T) {
	opts := config.Options{LookupEnv: func(string) (string, bool) { return "pw", true }}
	res, err := config.Load(opts, "../../examples/corp")
	if err != nil {
		t.Fatal(err)
	}
	var set []core.Resource
	for _, d := range res.Documents {
		r, problems := config.DecodeJSON(d.Kind, d.JSON)
		if problems != nil {
			t.Fatal(problems)
		}
		validate.Defaults(r)
		set = append(set, r)
	}
	if problems := validate.Set(set); problems != nil {
		t.Error(lines(problems))
	}
}

func TestNames(t *testing.T) {
	const label = " is not a name: up to 63 lower-case letters, digits and hyphens, a letter or digit first and last"
	rename := func(name string) func(*world) {
		return func(w *world) { w.others = []core.Resource{&core.NetworkSecurityGroup{Name: name}} }
	}
	gateway := func(name string) func(*world) {
		return func(w *world) { w.gw.Name, w.ds.Gateway = name, name }
	}
	long := strings.Repeat("a", 64)
	run(t, map[string]testCase{
		"63":                     {rename(long[:63]), ""},
		"64":                     {rename(long), "NetworkSecurityGroup/" + long + " name: \"" + long + "\"" + label},
		"upper case":             {rename("Ab"), `NetworkSecurityGroup/Ab name: "Ab"` + label},
		"hyphen last":            {rename("a-"), `NetworkSecurityGroup/a- name: "a-"` + label},
		"hyphen inside":          {rename("a-1"), ""},
		"slash":                  {rename("a/b"), `NetworkSecurityGroup/a/b name: "a/b"` + label},
		"twice":                  {rename("rules"), "NetworkSecurityGroup/rules name: NetworkSecurityGroup/rules is declared twice"},
		"subnet":                 {func(w *world) { w.vnet.Subnets[1].Name, w.ep.Subnet = "D", "D" }, `VirtualNetwork/corp subnets[1].name: "D"` + label},
		"source with underscore": {func(w *world) { w.ds.Name = "a_b" }, ""},
		"source with a dot": {func(w *world) { w.ds.Name = "a.b" },
			`DataSource/a.b name: "a.b" is not a name: up to 63 lower-case letters, digits, hyphens and underscores, a letter or digit first and last`},
		"gateway with spaces":    {gateway("Corp BI (north) ü.1_-"), ""},
		"gateway of 200":         {gateway(strings.Repeat("ü", 200)), ""},
		"gateway of 201":         {gateway(strings.Repeat("x", 201)), "Gateway/" + strings.Repeat("x", 201) + " name: has 201 characters, at most 200 are possible"},
		"gateway with a slash":   {gateway("a/b"), `Gateway/a/b name: "a/b" is not a name: letters, digits, spaces and . _ - ( ), no space first or last`},
		"gateway that is a path": {gateway(".."), `Gateway/.. name: ".." is not a name: letters, digits, spaces and . _ - ( ), no space first or last`},
		"gateway with a newline": {gateway("a\nb"), "Gateway/a\nb name: \"a\\nb\" is not a name: letters, digits, spaces and . _ - ( ), no space first or last"},
	})
}

func TestNetworks(t *testing.T) {
	space := func(ss ...string) func(*world) {
		return func(w *world) { w.vnet.AddressSpace = append(w.vnet.AddressSpace, prefixes(ss...)...) }
	}
	second := func(s string) func(*world) {
		return func(w *world) { w.vnet.Subnets = append(w.vnet.Subnets, core.Subnet{Name: "s", Prefix: prefix(s)}) }
	}
	run(t, map[string]testCase{
		"second prefix":            {space("192.168.0.0/16"), ""},
		"host bits":                {space("192.168.1.0/16"), "VirtualNetwork/corp addressSpace[1]: 192.168.1.0/16 has host bits set"},
		"IPv6":                     {space("fd00::/64"), "VirtualNetwork/corp addressSpace[1]: fd00::/64 is not IPv4: virtual networks are IPv4 only"},
		"mapped IPv4":              {space("::ffff:10.0.0.0/104"), "VirtualNetwork/corp addressSpace[1]: ::ffff:10.0.0.0/104 is not IPv4: virtual networks are IPv4 only"},
		"overlap":                  {space("10.20.128.0/24"), "VirtualNetwork/corp addressSpace[1]: 10.20.128.0/24 overlaps 10.20.0.0/16 in the same address space"},
		"adjacent":                 {space("10.21.0.0/16"), ""},
		"link-local":               {space("169.254.7.0/24"), "VirtualNetwork/corp addressSpace[1]: 169.254.7.0/24 overlaps the tunnels (169.254.0.0/16)"},
		"loopback":                 {space("127.0.0.0/8"), "VirtualNetwork/corp addressSpace[1]: 127.0.0.0/8 overlaps loopback (127.0.0.0/8)"},
		"zero":                     {space("0.1.0.0/16"), "VirtualNetwork/corp addressSpace[1]: 0.1.0.0/16 overlaps this host (0.0.0.0/8)"},
		"multicast":                {space("239.0.0.0/8"), "VirtualNetwork/corp addressSpace[1]: 239.0.0.0/8 overlaps multicast and above (224.0.0.0/3)"},
		"just below multicast":     {space("223.0.0.0/8"), ""},
		"contains what is refused": {space("160.0.0.0/4"), "VirtualNetwork/corp addressSpace[1]: 160.0.0.0/4 overlaps the tunnels (169.254.0.0/16)"},
		"no address space": {
			func(w *world) { w.others = []core.Resource{&core.VirtualNetwork{Name: "x"}} },
			"VirtualNetwork/x addressSpace: is missing: at least one prefix such as 10.20.0.0/16",
		},
		"same prefix in another network": {func(w *world) {
			w.others = []core.Resource{&core.VirtualNetwork{Name: "other", AddressSpace: w.vnet.AddressSpace, Subnets: []core.Subnet{{Name: "s", Prefix: prefix("10.20.0.0/24")}}}}
		}, ""},

		"subnet outside": {second("10.21.0.0/24"), "VirtualNetwork/corp subnets[2].prefix: 10.21.0.0/24 is not inside the address space 10.20.0.0/16"},
		"subnet larger than space": {func(w *world) {
			w.vnet.AddressSpace = prefixes("10.20.0.0/23")
			w.vnet.Subnets = append(w.vnet.Subnets, core.Subnet{Name: "s", Prefix: prefix("10.20.2.0/23")})
		}, "VirtualNetwork/corp subnets[2].prefix: 10.20.2.0/23 is not inside the address space 10.20.0.0/23"},
		"subnets overlap":          {second("10.20.1.128/25"), `VirtualNetwork/corp subnets[2].prefix: 10.20.1.128/25 overlaps 10.20.1.0/24 of subnet "data" (subnets[1])`},
		"subnet inside free space": {second("10.20.2.0/25"), ""},
		"/29":                      {second("10.20.2.0/29"), ""},
		"/30":                      {second("10.20.2.0/30"), "VirtualNetwork/corp subnets[2].prefix: 10.20.2.0/30 is too small: five addresses of a subnet are reserved, the smallest is a /29"},
		"subnet's host bits":       {second("10.20.2.1/24"), "VirtualNetwork/corp subnets[2].prefix: 10.20.2.1/24 has host bits set"},
		"no prefix": {func(w *world) { w.vnet.Subnets = append(w.vnet.Subnets, core.Subnet{Name: "s"}) },
			"VirtualNetwork/corp subnets[2].prefix: is missing: a prefix such as 10.20.0.0/16"},
		"subnet twice": {func(w *world) {
			w.vnet.Subnets = append(w.vnet.Subnets, core.Subnet{Name: "data", Prefix: prefix("10.20.2.0/24")})
		},
			`VirtualNetwork/corp subnets[2].name: another subnet of this network is named "data"`},
		"strange delegation": {func(w *world) {
			w.vnet.Subnets[1].Delegation = "x"
			w.ep.Subnet, w.ep.Address = "free", netip.Addr{}
			w.vnet.Subnets = append(w.vnet.Subnets, core.Subnet{Name: "free", Prefix: prefix("10.20.2.0/24")})
		},
			`VirtualNetwork/corp subnets[1].delegation: "x" is not a delegation such as sluice/gateways`},
	})
}

func TestReferences(t *testing.T) {
	run(t, map[string]testCase{
		"nsg":        {func(w *world) { w.vnet.Subnets[1].NSG = "rulez" }, `VirtualNetwork/corp subnets[1].nsg: there is no NetworkSecurityGroup "rulez"`},
		"nsg shared": {func(w *world) { w.vnet.Subnets[1].NSG = "rules" }, ""},
		"nat":        {func(w *world) { w.vnet.Subnets[1].NATGateway = "x" }, `VirtualNetwork/corp subnets[1].natGateway: there is no NATGateway "x"`},
		"nat of another network": {func(w *world) {
			w.others = []core.Resource{&core.VirtualNetwork{Name: "b", AddressSpace: prefixes("10.20.0.0/16"), Subnets: []core.Subnet{{Name: "s", Prefix: prefix("10.20.0.0/24"), NATGateway: "egress"}}}}
		}, `VirtualNetwork/b subnets[0].natGateway: NATGateway "egress" belongs to VirtualNetwork/corp, not to this network`},
		"nat shared in its network": {func(w *world) { w.vnet.Subnets[1].NATGateway = "egress" }, ""},
		"nat's network": {func(w *world) {
			w.others = []core.Resource{&core.NATGateway{Name: "n", VNet: "x", PublicAddresses: []string{"host"}}}
		}, `NATGateway/n vnet: there is no VirtualNetwork "x"`},
		"zone's network":     {func(w *world) { w.zone.VNets = append(w.zone.VNets, "x") }, `PrivateDNSZone/corp.internal vnets[1]: there is no VirtualNetwork "x"`},
		"endpoint's network": {func(w *world) { w.ep.VNet, w.ep.DNSName = "x", "" }, `PrivateEndpoint/db vnet: there is no VirtualNetwork "x"`},
		"endpoint's subnet":  {func(w *world) { w.ep.Subnet = "x" }, `PrivateEndpoint/db subnet: VirtualNetwork/corp has no subnet "x"`},
		"gateway's network":  {func(w *world) { w.gw.VNet = "" }, "Gateway/corp-bi vnet: is missing: the name of a VirtualNetwork"},
		"gateway's subnet":   {func(w *world) { w.gw.Subnet = "" }, "Gateway/corp-bi subnet: is missing: a subnet of VirtualNetwork/corp"},
		"source's gateway":   {func(w *world) { w.ds.Gateway = "x" }, `DataSource/orders gateway: there is no Gateway "x"`},
	})
}

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

func TestZonesAndEndpoints(t *testing.T) {
	address := func(s string) func(*world) { return func(w *world) { w.ep.Address = netip.MustParseAddr(s) } }
	target := func(s string) func(*world) { return func(w *world) { w.ep.Target = s } }
	dns := func(s string) func(*world) { return func(w *world) { w.ep.DNSName = s } }
	zone := func(name string, vnets ...string) func(*world) {
		return func(w *world) { w.others = []core.Resource{&core.PrivateDNSZone{Name: name, VNets: vnets}} }
	}
	endpoint := func(a string) func(*world) {
		return func(w *world) {
			w.others = []core.Resource{&core.PrivateEndpoint{Name: "e2", VNet: "corp", Subnet: "data", Address: netip.MustParseAddr(a), Target: "h:1"}}
		}
	}
	const label = " is not a DNS name: labels of up to 63 letters, digits and hyphens, with dots between"
	run(t, map[string]testCase{
		"zone of one label":  {zone("internal", "corp"), ""},
		"zone below another": {zone("a.corp.internal", "corp"), ""},
		"zone's case":        {zone("A.internal", "corp"), `PrivateDNSZone/A.internal name: "A.internal" must be in lower case`},
		"zone's dot":         {zone("a.internal.", "corp"), `PrivateDNSZone/a.internal. name: "a.internal." ends with a dot: leave it out`},
		"zone's label":       {zone("a..internal", "corp"), `PrivateDNSZone/a..internal name: "a..internal"` + label},
		"zone too long":      {zone(strings.Repeat("a.", 127)+"a", "corp"), "PrivateDNSZone/" + strings.Repeat("a.", 127) + `a name: "` + strings.Repeat("a.", 127) + `a" is longer than 253 characters`},
		"linked twice":       {zone("b.internal", "corp", "corp"), "PrivateDNSZone/b.internal vnets[1]: corp is linked already"},
		"same zone": {zone("corp.internal.", "corp"), `PrivateDNSZone/corp.internal. name: "corp.internal." ends with a dot: leave it out` + "\n" +
			"PrivateDNSZone/corp.internal. vnets[0]: PrivateDNSZone/corp.internal is the same zone, and corp is linked to it"},

		"address left out":    {func(w *world) { w.ep.Address = netip.Addr{} }, ""},
		"address outside":     {address("10.20.2.4"), `PrivateEndpoint/db address: 10.20.2.4 is not in the prefix 10.20.1.0/24 of subnet "data"`},
		"address .3":          {address("10.20.1.3"), "PrivateEndpoint/db address: 10.20.1.3 is reserved: the first four addresses of 10.20.1.0/24 and the last"},
		"address .0":          {address("10.20.1.0"), "PrivateEndpoint/db address: 10.20.1.0 is reserved: the first four addresses of 10.20.1.0/24 and the last"},
		"address last":        {address("10.20.1.255"), "PrivateEndpoint/db address: 10.20.1.255 is reserved: the first four addresses of 10.20.1.0/24 and the last"},
		"address before last": {address("10.20.1.254"), ""},
		"address IPv6":        {address("fd00::4"), "PrivateEndpoint/db address: fd00::4 is not IPv4: virtual networks are IPv4 only"},
		"another address":     {endpoint("10.20.1.5"), ""},
		"the same address":    {endpoint("10.20.1.4"), "PrivateEndpoint/e2 address: 10.20.1.4 is the address of PrivateEndpoint/db"},
		"in a delegated subnet": {func(w *world) { w.ep.Subnet, w.ep.Address = "gateways", netip.Addr{} },
			`PrivateEndpoint/db subnet: subnet "gateways" is delegated to sluice/gateways and holds nothing else`},

		"target by name":      {target("db.example.com:5432"), ""},
		"target IPv6":         {target("[::1]:5432"), ""},
		"target bare IPv6":    {target("::1:5432"), `PrivateEndpoint/db target: "::1:5432": the address "::1" needs brackets before a port: [::1]:5432`},
		"target without port": {target("127.0.0.1"), `PrivateEndpoint/db target: "127.0.0.1": is not host:port, such as 127.0.0.1:5432`},
		"target missing":      {target(""), "PrivateEndpoint/db target: is missing: host:port, as the host reaches the data service"},
		"port 0":              {target("a:0"), `PrivateEndpoint/db target: "a:0": "0" is not a port: a number from 1 to 65535`},
		"port 65536":          {target("a:65536"), `PrivateEndpoint/db target: "a:65536": "65536" is not a port: a number from 1 to 65535`},
		"port empty":          {target("a:"), `PrivateEndpoint/db target: "a:": "" is not a port: a number from 1 to 65535`},
		"address slip":        {target("10.0.0.256:1"), `PrivateEndpoint/db target: "10.0.0.256:1": "10.0.0.256" is not an address`},
		"bad host":            {target("a b:1"), `PrivateEndpoint/db target: "a b:1": the host "a b"` + label},

		"no name":           {dns(""), ""},
		"the zone itself":   {dns("corp.internal"), ""},
		"deep in the zone":  {dns("a.b.corp.internal"), ""},
		"suffix of letters": {dns("xcorp.internal"), `PrivateEndpoint/db dnsName: "xcorp.internal" lies in no zone that is linked to VirtualNetwork/corp`},
		"bad name":          {dns("-.corp.internal"), `PrivateEndpoint/db dnsName: "-.corp.internal"` + label},
	})
}

func TestGateways(t *testing.T) {
	gw := func(change func(g *core.Gateway)) func(*world) { return func(w *world) { change(w.gw) } }
	members := func(lo, hi int) func(*world) {
		return gw(func(g *core.Gateway) { g.Members = core.MemberRange{Min: lo, Max: hi} })
	}
	const o = "Gateway/corp-bi "
	run(t, map[string]testCase{
		"0 to 9":       {members(0, 9), ""},
		"9 to 9":       {members(9, 9), ""},
		"10":           {members(0, 10), o + "members.max: 10 is above 9, the most that a gateway may have"},
		"-1":           {members(-1, 2), o + "members.min: -1 is below 0"},
		"max -1":       {members(0, -1), o + "members.max: -1 is below 1"},
		"min over max": {members(3, 2), o + "members.min: 3 is above members.max, which is 2"},
		"1s":           {gw(func(g *core.Gateway) { g.AutoPause = core.Duration(time.Second) }), ""},
		"never":        {gw(func(g *core.Gateway) { g.AutoPause = core.Never }), ""},
		"below 1s":     {gw(func(g *core.Gateway) { g.AutoPause = core.Duration(time.Millisecond) }), o + "autoPause: 1ms is below 1s"},
		"a schedule": {gw(func(g *core.Gateway) {
			g.Schedule = []core.ScheduledAct{{Cron: "0 7 * * 1-5", TimeZone: "Europe/Berlin", Action: core.ScheduleWake}, {Cron: "0 19 * * *", Action: core.SchedulePause}}
		}), ""},
		"a schedule that is wrong": {gw(func(g *core.Gateway) {
			g.Schedule = []core.ScheduledAct{{Cron: "0 7 * * 1-5", Action: core.ScheduleWake}, {Cron: "0 25 * * *", Action: "stop"}}
		}), o + `schedule[1].action: "stop" is none of wake, pause` + "\n" + o + `schedule[1].cron: "0 25 * * *" is not five fields (minute, hour, day of the month, month, day of the week), such as "0 7 * * 1-5": end of range (25) above maximum (23): 25`},
		"CPUs":          {gw(func(g *core.Gateway) { g.Size.CPUs = 0.01 }), o + "size.cpus: 0.01 is not from 0.1 to 256"},
		"half a CPU":    {gw(func(g *core.Gateway) { g.Size.CPUs = 0.5 }), ""},
		"memory":        {gw(func(g *core.Gateway) { g.Size.MemoryMiB = 63 }), o + "size.memoryMiB: 63 is not from 64 to 4194304"},
		"64 MiB":        {gw(func(g *core.Gateway) { g.Size.MemoryMiB = 64 }), ""},
		"no delegation": {gw(func(g *core.Gateway) { g.Subnet = "data" }), o + `subnet: subnet "data" is not delegated`},
		"delegated to another": {func(w *world) { w.vnet.Subnets[0].Delegation = "other/service" },
			o + `subnet: subnet "gateways" is delegated to other/service, a gateway needs sluice/gateways`},
	})
}

func TestDataSources(t *testing.T) {
	ds := func(change func(d *core.DataSource)) func(*world) { return func(w *world) { change(w.ds) } }
	param := func(name, value string) func(*world) {
		return ds(func(d *core.DataSource) { d.Parameters[name] = value })
	}
	const o = "DataSource/orders "
	run(t, map[string]testCase{
		"type":     {ds(func(d *core.DataSource) { d.Type = "oracle" }), o + `type: "oracle" is no type of data source: postgres`},
		"unknown":  {param("hots", "x"), o + `parameters.hots: PostgreSQL has no parameter "hots"; it has host, port, database, tls, tlsCA, connectTimeout, applicationName, options`},
		"required": {ds(func(d *core.DataSource) { delete(d.Parameters, "host") }), o + "parameters.host: is missing: name or address, as the gateway's network sees it"},
		"empty":    {param("database", ""), o + "parameters.database: is missing: database to connect to"},
		"value":    {param("tls", "off"), o + `parameters.tls: "off" is none of disable, require, verify-ca, verify-full`},
		"allowed":  {param("tls", "verify-ca"), ""},
		"port":     {param("port", "70000"), o + `parameters.port: "70000" is not a port: a number from 1 to 65535`},
		"no user":  {ds(func(d *core.DataSource) { d.Credentials.Username = "" }), o + "credentials.username: is missing: credentials of the kind basic are a user name and a password"},
		"kind":     {ds(func(d *core.DataSource) { d.Credentials.Kind = "Basic" }), o + `credentials.kind: "Basic" is none of basic, anonymous`},
		"left out": {ds(func(d *core.DataSource) { d.Credentials = core.Credentials{} }), ""},
		"anonymous with a password": {ds(func(d *core.DataSource) {
			d.Credentials = core.Credentials{Username: "u", Password: core.NewSecret("p")}
		}),
			o + "credentials.username: credentials of the kind anonymous have none\n" + o + "credentials.password: credentials of the kind anonymous have none"},
	})
}

func TestHints(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world)
		want   string
	}{
		"host bits":    {func(w *world) { w.vnet.AddressSpace = prefixes("10.20.3.4/16") }, "write 10.20.0.0/16"},
		"nsg":          {func(w *world) { w.vnet.Subnets[1].NSG = "rulez" }, "declared: rules"},
		"case":         {func(w *world) { w.nsg.Rules[0].Access = "allow" }, "write Allow"},
		"delegation":   {func(w *world) { w.vnet.Subnets[0].Delegation = "" }, "add delegation: sluice/gateways to the subnet in VirtualNetwork/corp"},
		"zone to link": {func(w *world) { w.zone.VNets = nil }, "link the zone: add corp to vnets of PrivateDNSZone/corp.internal"},
		"other zone":   {func(w *world) { w.ep.DNSName = "db.example" }, "the zones linked to it are corp.internal"},
		"no zone":      {func(w *world) { w.zone.VNets, w.ep.DNSName = nil, "db.example" }, "declare a PrivateDNSZone example with vnets: [corp]"},
	} {
		t.Run(name, func(t *testing.T) {
			w := valid()
			c.change(w)
			problems := validate.Set(w.set())
			if len(problems) != 1 || problems[0].Hint != c.want {
				t.Errorf("%s: hint %q, want %q", lines(problems), problems[0].Hint, c.want)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	w := valid()
	w.ds.Credentials = core.Credentials{}
	set := w.set()
	yes := true
	want := []core.Resource{
		&core.NATGateway{Name: "egress", VNet: "corp", PublicAddresses: []string{"host"}, IdleTimeout: core.Duration(4 * time.Minute)},
		&core.Gateway{Name: "corp-bi", VNet: "corp", Subnet: "gateways", Members: core.MemberRange{Max: 1},
			AutoPause: core.Duration(30 * time.Minute), Size: core.MemberSize{CPUs: 2, MemoryMiB: 8192}},
		&core.DataSource{Name: "orders", Gateway: "corp-bi", Type: "postgres", ReadOnly: &yes,
			Parameters: w.ds.Parameters, Credentials: core.Credentials{Kind: core.CredentialAnonymous}},
	}
	got := []core.Resource{set[2], set[5], set[6]}
	for i := range want {
		if diff := cmp.Diff(asJSON(t, want[i]), asJSON(t, got[i])); diff != "" {
			t.Error(diff)
		}
	}
	no := false
	said := &core.Gateway{Members: core.MemberRange{Min: 2, Max: 3}, AutoPause: core.Never, Size: core.MemberSize{CPUs: 1, MemoryMiB: 100}}
	before := *said
	validate.Defaults(said)
	src := &core.DataSource{ReadOnly: &no, Credentials: core.Credentials{Kind: core.CredentialBasic}}
	validate.Defaults(src)
	if !cmp.Equal(*said, before) || src.IsReadOnly() || src.Credentials.Kind != core.CredentialBasic {
		t.Error("a default replaced what was said")
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
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

func TestAssignAddresses(t *testing.T) {
	build := func(order ...string) ([]core.Resource, map[string]*core.PrivateEndpoint) {
		w := valid()
		w.vnet.Subnets[1].Prefix = prefix("10.20.1.0/28") // .4 to .14
		set := w.set()
		byName := map[string]*core.PrivateEndpoint{}
		for _, n := range order {
			e := &core.PrivateEndpoint{Name: n, VNet: "corp", Subnet: "data", Target: "h:1"}
			byName[n] = e
			set = append(set, e)
		}
		return set, byName
	}
	for _, order := range [][]string{{"a", "b", "c"}, {"c", "a", "b"}} {
		set, by := build(order...)
		taken := func(vnet string, a netip.Addr) bool { return vnet == "corp" && a.String() == "10.20.1.6" }
		if problems := validate.AssignAddresses(set, taken); problems != nil {
			t.Fatal(lines(problems))
		}
		got := fmt.Sprint(by["a"].Address, by["b"].Address, by["c"].Address)
		if got != "10.20.1.5 10.20.1.7 10.20.1.8" { // .4 is db's, .6 is taken
			t.Errorf("%v: %s", order, got)
		}
		if problems := validate.Set(set); problems != nil {
			t.Error(lines(problems))
		}
	}

	names := strings.Split("abcdefghijk", "")
	set, by := build(names...)
	problems := validate.AssignAddresses(set, nil)
	if len(problems) != 1 || problems[0].Class != errs.Exhausted || lines(problems) != `PrivateEndpoint/k address: subnet "data" (10.20.1.0/28) has no free address` {
		t.Errorf("full: %s", lines(problems))
	}
	if by["j"].Address.String() != "10.20.1.14" || by["k"].Address.IsValid() {
		t.Errorf("j %s, k %s", by["j"].Address, by["k"].Address)
	}
}

func TestDeleteBlockers(t *testing.T) {
	w := valid()
	for _, c := range []struct {
		kind core.Kind
		name string
		want string
	}{
		{core.KindVirtualNetwork, "corp", "[NATGateway/egress vnet PrivateDNSZone/corp.internal vnets[0] PrivateEndpoint/db vnet Gateway/corp-bi vnet]"},
		{core.KindNetworkSecurityGroup, "rules", "[VirtualNetwork/corp subnets[0].nsg]"},
		{core.KindNATGateway, "egress", "[VirtualNetwork/corp subnets[0].natGateway]"},
		{core.KindPrivateDNSZone, "corp.internal", "[PrivateEndpoint/db dnsName]"},
		{core.KindPrivateEndpoint, "db", "[]"},
		{core.KindGateway, "corp-bi", "[DataSource/orders gateway]"},
		{core.KindDataSource, "orders", "[]"},
		{core.KindVirtualNetwork, "corpo", "[]"},
		{core.KindGateway, "corp", "[]"},
	} {
		if got := fmt.Sprint(validate.DeleteBlockers(w.set(), c.kind, c.name)); got != c.want {
			t.Errorf("%s/%s: %s, want %s", c.kind, c.name, got, c.want)
		}
	}
	w.others = []core.Resource{&core.PrivateDNSZone{Name: "internal", VNets: []string{"corp"}}}
	if got := validate.DeleteBlockers(w.set(), core.KindPrivateDNSZone, "corp.internal"); got != nil {
		t.Errorf("the name lies in another zone too: %v", got)
	}
}

func TestReserved(t *testing.T) {
	p := prefix("10.0.0.8/29")
	var usable []string
	for a := p.Addr(); p.Contains(a); a = a.Next() {
		if !validate.Reserved(p, a) {
			usable = append(usable, a.String())
		}
	}
	if got := strings.Join(usable, " "); got != "10.0.0.12 10.0.0.13 10.0.0.14" {
		t.Error(got)
	}
}
