package policy

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

func TestCompileRefusesImpossibleInput(t *testing.T) {
	rule := func(f func(*core.SecurityRule)) func(*VNetInput) {
		return func(in *VNetInput) { f(&in.VNet.NSGs[0].Rules[0]) }
	}
	for name, c := range map[string]struct {
		change func(*VNetInput)
		want   string // in the message
		field  string
	}{
		"an address that is none":  {rule(func(r *core.SecurityRule) { r.Source = []string{"everyone"} }), `"everyone" is neither`, "rules[allow-postgres].source"},
		"a port that is none":      {rule(func(r *core.SecurityRule) { r.DestinationPorts = []string{"65536"} }), `"65536" is neither`, "rules[allow-postgres].destinationPorts"},
		"a range backwards":        {rule(func(r *core.SecurityRule) { r.SourcePorts = []string{"9-1"} }), `"9-1" is neither`, "rules[allow-postgres].sourcePorts"},
		"a protocol that is none":  {rule(func(r *core.SecurityRule) { r.Protocol = "SCTP" }), `"SCTP" is not a protocol`, "rules[allow-postgres].protocol"},
		"an access that is none":   {rule(func(r *core.SecurityRule) { r.Access = "" }), `rule allow-postgres of network security group gateways: "" is not an access`, "rules[allow-postgres].access"},
		"a direction that is none": {rule(func(r *core.SecurityRule) { r.Direction = "Up" }), `"Up" is not a direction`, "rules[allow-postgres].direction"},
		"a missing NSG":            {func(in *VNetInput) { in.VNet.NSGs = in.VNet.NSGs[:1] }, "subnet data names network security group data", "subnets[1].nsg"},
		"an NSG twice":             {func(in *VNetInput) { in.VNet.NSGs[0].Name = "data" }, "network security group data is there twice", "nsgs[1]"},
		"a NIC's missing NSG": {func(in *VNetInput) {
			in.VNet.NICs = []core.GoalNIC{{Address: addr("10.20.0.4"), Gateway: "bi", NSG: "x"}}
		}, "the NIC of gateway bi names network security group x, which is not there", "nics[0]"},
		"a NIC twice": {func(in *VNetInput) {
			in.VNet.NICs = []core.GoalNIC{{Address: addr("10.20.0.4"), NSG: "data"}, {Address: addr("10.20.0.4"), NSG: "data"}}
		}, "10.20.0.4 is not an address of its own", "nics[1]"},
		"a group of IPv6": {func(in *VNetInput) {
			in.VNet.ASGs = []core.GoalASG{{Name: "web", Addresses: []netip.Addr{addr("fd00::1")}}}
		}, "fd00::1 is not an IPv4 address", "asgs[0]"},
		"a tag like a group": {func(in *VNetInput) {
			in.VNet.ASGs, in.VNet.ServiceTags = []core.GoalASG{{Name: "web"}}, []core.ServiceTag{{Name: "web"}}
		}, "the name is taken", "serviceTags[0]"},
		"a group like a tag": {func(in *VNetInput) {
			in.VNet.ASGs = []core.GoalASG{{Name: "Internet"}}
		}, "the name is taken", "asgs[0]"},
		"IPv6 address space":         {func(in *VNetInput) { in.VNet.AddressSpace[0] = prefix("fd00::/48") }, "not an IPv4 prefix", "addressSpace[0]"},
		"overlapping subnets":        {func(in *VNetInput) { in.VNet.Subnets[1].Prefix = prefix("10.20.0.128/25") }, "overlap", "subnets[1].prefix"},
		"a subnet outside":           {func(in *VNetInput) { in.VNet.Subnets[1].Prefix = prefix("10.0.0.0/8") }, "overlap", "subnets[1].prefix"},
		"a subnet elsewhere":         {func(in *VNetInput) { in.VNet.Subnets[1].Prefix = prefix("10.21.0.0/24") }, "not inside the address space", "subnets[1].prefix"},
		"a lease outside":            {func(in *VNetInput) { in.Ports[0].Address = addr("10.20.1.5") }, `not in subnet "gateways"`, ""},
		"a lease twice":              {func(in *VNetInput) { in.Ports[0].Address = in.Ports[1].Address }, "held twice", ""},
		"an interface twice":         {func(in *VNetInput) { in.Ports[0].Interface = in.Ports[1].Interface }, "held twice", ""},
		"a MAC that is none":         {func(in *VNetInput) { in.Ports[0].MAC = "02:00" }, `"02:00" is not a MAC`, ""},
		"a wildcard interface":       {func(in *VNetInput) { in.Ports[0].Interface = "sl-*" }, "not the name of an interface", ""},
		"a quote in an interface":    {func(in *VNetInput) { in.Ports[0].Interface = `a"b` }, "not the name of an interface", ""},
		"an endpoint on a lease":     {func(in *VNetInput) { in.VNet.Endpoints[0].Address = addr("10.20.0.4") }, "holds its address", "endpoints[0]"},
		"an endpoint without port":   {func(in *VNetInput) { in.VNet.Endpoints[0].Port = 0 }, "port 0", "endpoints[0]"},
		"an IPv6 resolver":           {func(in *VNetInput) { in.Resolvers = []netip.Addr{addr("fd00::1")} }, "not IPv4", ""},
		"a NAT on a member's port":   {func(in *VNetInput) { in.NATInterfaces["egress"] = "sl-m1" }, "leads to NAT gateway egress and to a member", ""},
		"a NAT interface that isn't": {func(in *VNetInput) { in.NATInterfaces["egress"] = "a b" }, "not the name of an interface", ""},
	} {
		t.Run(name, func(t *testing.T) {
			in := corpInput()
			c.change(&in)
			text, err := CompileVNet(in)
			if err == nil {
				t.Fatalf("accepted:\n%s", text)
			}
			e := errs.As(err)
			if !strings.Contains(e.Message, c.want) || e.Class != errs.Invalid || e.Object == "" || e.Field != c.field {
				t.Errorf("%s on %s, field %q: %s", e.Class, e.Object, e.Field, e.Message)
			}
		})
	}
}

func TestNATRefusesImpossibleInput(t *testing.T) {
	for name, change := range map[string]func(*NATInput){
		"one interface":   func(in *NATInput) { in.Outside = in.Inside },
		"no interface":    func(in *NATInput) { in.Inside = "" },
		"an IPv6 address": func(in *NATInput) { in.SNAT = []netip.Addr{addr("2001:db8::1")} },
		"no prefix":       func(in *NATInput) { in.InsidePrefixes = nil },
		"an IPv6 prefix":  func(in *NATInput) { in.InsidePrefixes = []netip.Prefix{prefix("fd00::/64")} },
	} {
		in := natInput()
		change(&in)
		if text, err := CompileNAT(in); errs.ClassOf(err) != errs.Invalid {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
	}
}

// TestNoWayOutYet checks that a NAT gateway without an interface leaves nothing open.
func TestNoWayOutYet(t *testing.T) {
	in := corpInput()
	in.NATInterfaces = nil
	text, err := CompileVNet(in)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, "NAT gateway egress") || strings.Contains(text, "daddr @internet meta l4proto") {
		t.Errorf("a way out without an interface:\n%s", text)
	}
}

func TestSpans(t *testing.T) {
	parse := func(list ...string) []span {
		var out []span
		for _, s := range list {
			out = append(out, prefixSpan(prefix(s)))
		}
		return merge(out)
	}
	for _, c := range []struct {
		in         []span
		text, rest string
	}{
		{nil, "", "0.0.0.0/0"},
		{parse("0.0.0.0/0"), "0.0.0.0/0", ""},
		{parse("0.0.0.0/1"), "0.0.0.0/1", "128.0.0.0/1"},
		{parse("128.0.0.0/1"), "128.0.0.0/1", "0.0.0.0/1"},
		{parse("10.0.0.2/32", "10.0.0.1/32"), "10.0.0.1-10.0.0.2", "0.0.0.0-10.0.0.0 10.0.0.3-255.255.255.255"},
		{parse("10.0.0.0/24", "10.0.0.7/32", "10.0.1.0/24"), "10.0.0.0/23", "0.0.0.0-9.255.255.255 10.0.2.0-255.255.255.255"},
		{parse("255.255.255.255/32", "0.0.0.0/32"), "0.0.0.0 255.255.255.255", "0.0.0.1-255.255.255.254"},
	} {
		text := strings.Join(texts(c.in, span.addressText), " ")
		rest := strings.Join(texts(complement(c.in), span.addressText), " ")
		if diff := cmp.Diff([]string{c.text, c.rest}, []string{text, rest}); diff != "" {
			t.Errorf("%v:\n%s", c.in, diff)
		}
	}
}

// hostileVNet has names that try to end the comment, the quotes or the line that they
// stand in, and names that differ only in what a chain's name cannot hold.
func hostileVNet(names ...string) VNetInput {
	in := corpInput()
	in.VNet.Name = names[0]
	in.VNet.NSGs = nil
	in.VNet.AddressSpace = []netip.Prefix{prefix("10.0.0.0/8")}
	for i, name := range names {
		in.VNet.NSGs = append(in.VNet.NSGs, core.NetworkSecurityGroup{Name: name, Rules: []core.SecurityRule{
			{Name: name, Priority: 100, Direction: core.Inbound, Access: core.Allow, Protocol: core.ProtocolAny},
			{Name: name, Priority: 100, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolICMP, DestinationPorts: []string{"1"}},
		}})
		in.VNet.Subnets = append(in.VNet.Subnets, core.Subnet{Name: name, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 30, byte(i), 0}), 24), NSG: name})
	}
	for i := range 2 {
		in.VNet.Subnets[i].NSG, in.VNet.Subnets[i].NATGateway = names[0], names[0]
	}
	in.VNet.NATGateways[0].Name = names[0]
	in.NATInterfaces = map[string]string{names[0]: "sl-nat1"}
	return in
}

func TestNftAcceptsEveryText(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.namespace("check")
	long := strings.Repeat("ü", 80)
	inputs := map[string]VNetInput{
		"nothing": {VNet: core.GoalVNet{Name: "empty"}},
		"names": hostileVNet("a\"b\\\n\tdrop\n}\nflush ruleset\n", "a.b", "a b", "a/b", "drop", "1", "-", long, long+"x",
			strings.Repeat("x", 80), "' ; #", "{}", "$x", "\xff\xfe", "\u2028"),
		"largest": largestVNet(),
	}
	for name, in := range inputs {
		text, err := CompileVNet(in)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		l.checkNft(name, text)
	}
	for name, in := range map[string]NATInput{
		"masquerade": natInput(), "one": natInput(addr("198.51.100.7")),
		"sixteen": natInput(sixteen()...), "twice": natInput(addr("198.51.100.7"), addr("198.51.100.7")),
	} {
		text, err := CompileNAT(in)
		if err != nil {
			t.Fatal(err)
		}
		l.checkNft(name, text)
	}
}

func (l *lab) checkNft(name, text string) {
	l.t.Helper()
	cmd := exec.CommandContext(l.t.Context(), "ip", "netns", "exec", l.prefix+"check", "nft", "-c", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		l.t.Errorf("%s: %v: %.2000s\n%.4000s", name, err, out, numbered(text))
	}
}

func sixteen() []netip.Addr {
	var out []netip.Addr
	for i := range 16 {
		out = append(out, netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}))
	}
	return out
}

// largestVNet has as many rules as an NSG may, and one rule with as many addresses as
// a rule may, no two of them neighbours.
func largestVNet() VNetInput {
	in := corpInput()
	var rules []core.SecurityRule
	for i := range 1000 {
		rules = append(rules, core.SecurityRule{Name: fmt.Sprintf("rule-%d", i), Priority: 100 + i, Direction: core.Inbound, Access: core.Allow,
			Protocol: core.ProtocolTCP, Source: []string{"10.1.0.0/16", "VirtualNetwork"}, DestinationPorts: []string{fmt.Sprint(i), fmt.Sprintf("%d-%d", 2*i+9, 2*i+12)}})
	}
	for i := range 4000 {
		a := netip.AddrFrom4([4]byte{100, 64, byte(i / 100), byte(2 * (i % 100))}).String()
		rules[0].Source, rules[0].Destination = append(rules[0].Source, a), append(rules[0].Destination, a)
	}
	in.VNet.NSGs[0].Rules = rules
	return in
}

// FuzzNames checks that no name of a user's ends the place that it stands in: the text
// stays the same but for what stands in comments.
func FuzzNames(f *testing.F) {
	f.Add("a\"b", "x\ny")
	f.Add("plain", "\u2028\xff")
	f.Fuzz(func(t *testing.T, nsg, rule string) {
		compile := func(nsg, rule string) string {
			in := corpInput()
			in.VNet.NSGs[0].Name, in.VNet.Subnets[0].NSG = nsg, nsg
			in.VNet.NSGs[0].Rules[0].Name = rule
			text, err := CompileVNet(in)
			if err != nil {
				t.Skip(err)
			}
			return text
		}
		if nsg == "" {
			t.Skip("no name is no NSG")
		}
		got, want := compile(nsg, rule), compile("gateways", "allow-postgres")
		if strings.Count(got, "\n") != strings.Count(want, "\n") || strings.Count(got, `"`) != strings.Count(want, `"`) {
			t.Errorf("the names %q and %q change the text:\n%s", nsg, rule, got)
		}
		for line := range strings.Lines(got) {
			if _, comment, ok := strings.Cut(line, `comment "`); ok && len(comment) > maxComment+len("\"\n") {
				t.Errorf("a comment of %d bytes: %s", len(comment), line)
			}
		}
	})
}
