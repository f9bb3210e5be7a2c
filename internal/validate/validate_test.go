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
		}), o + `schedule[1].action: "stop" is none of wake, pause` + "\n" + o + `schedule[1].cron: "0 25 * * *" is not a schedule: end of range (25) above maximum (23): 25`},
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
