package policy

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sluice-gateway/sluice/internal/core"
)

func TestEvaluateCorp(t *testing.T) {
	const vnetLocal, egress = "VnetLocal", "NAT gateway egress"
	for name, c := range map[string]struct {
		from, to  string
		protocol  core.Protocol
		port      uint16
		allowed   bool
		decisions []string
		route     string
	}{
		"the data source": {"10.20.0.4", "10.20.1.4", core.ProtocolTCP, 5432, true, []string{
			"allowed by rule gateways/allow-postgres (100) at subnet gateways, outbound",
			"allowed by rule data/only-gateways (100) at subnet data, inbound",
		}, vnetLocal},
		"another port of it": {"10.20.0.4", "10.20.1.4", core.ProtocolTCP, 22, false, []string{
			"denied by rule gateways/deny-rest-of-vnet (4000) at subnet gateways, outbound",
		}, "none: private endpoint orders-db answers on TCP port 5432 only"},
		"from beside it": {"10.20.1.9", "10.20.1.4", core.ProtocolTCP, 5432, false, []string{
			"allowed by rule data/AllowVnetOutBound (65000) at subnet data, outbound",
			"denied by rule data/deny-all (4096) at subnet data, inbound",
		}, vnetLocal},
		"the Internet": {"10.20.0.4", "198.51.100.7", core.ProtocolTCP, 443, true, []string{
			"allowed by rule gateways/AllowInternetOutBound (65001) at subnet gateways, outbound",
		}, egress},
		"the Internet from a subnet without NAT": {"10.20.1.9", "198.51.100.7", core.ProtocolUDP, 443, false, []string{
			"allowed by rule data/AllowInternetOutBound (65001) at subnet data, outbound",
		}, "none: 198.51.100.7 is outside the virtual network and subnet data names no NAT gateway"},
		"ESP through NAT": {"10.20.0.4", "198.51.100.7", core.ProtocolESP, 0, false, []string{
			"allowed by rule gateways/AllowInternetOutBound (65001) at subnet gateways, outbound",
		}, "none: NAT gateway egress carries TCP, UDP and ping only"},
		"ping through NAT": {"10.20.0.4", "198.51.100.7", core.ProtocolICMP, 0, true, []string{
			"allowed by rule gateways/AllowInternetOutBound (65001) at subnet gateways, outbound",
		}, egress},
		"a link-local address": {"10.20.0.4", "169.254.169.254", core.ProtocolTCP, 80, false, []string{
			"denied by rule gateways/DenyAllOutBound (65500) at subnet gateways, outbound",
		}, "none: 169.254.169.254 is a link-local address"},
		"the resolver":           {"10.20.0.4", "10.20.0.2", core.ProtocolUDP, 53, true, nil, vnetLocal},
		"the resolver, over TCP": {"10.20.1.9", "10.20.0.3", core.ProtocolTCP, 53, true, nil, vnetLocal},
		"the resolver, on other ports": {"10.20.1.9", "10.20.0.2", core.ProtocolTCP, 80, false, []string{
			"allowed by rule data/AllowVnetOutBound (65000) at subnet data, outbound",
			"allowed by rule gateways/AllowVnetInBound (65000) at subnet gateways, inbound",
		}, "none: the resolver 10.20.0.2 answers on port 53 only"},
		"a subnet's gateway": {"10.20.1.9", "10.20.0.1", core.ProtocolICMP, 0, false, []string{
			"allowed by rule data/AllowVnetOutBound (65000) at subnet data, outbound",
			"allowed by rule gateways/AllowVnetInBound (65000) at subnet gateways, inbound",
		}, "none: 10.20.0.1 is reserved in subnet gateways"},
		"a subnet's last address": {"10.20.1.9", "10.20.0.255", core.ProtocolUDP, 9, false, []string{
			"allowed by rule data/AllowVnetOutBound (65000) at subnet data, outbound",
			"allowed by rule gateways/AllowVnetInBound (65000) at subnet gateways, inbound",
		}, "none: 10.20.0.255 is reserved in subnet gateways"},
		"between subnets": {"10.20.1.9", "10.20.7.7", core.ProtocolTCP, 80, false, []string{
			"allowed by rule data/AllowVnetOutBound (65000) at subnet data, outbound",
		}, "none: 10.20.7.7 is in no subnet of virtual network corp"},
		"from elsewhere": {"10.21.0.4", "10.20.1.4", core.ProtocolTCP, 5432, false, nil,
			"none: the source 10.21.0.4 is in no subnet of virtual network corp"},
		"IPv6": {"10.20.1.9", "2001:db8::1", core.ProtocolTCP, 80, false, []string{
			"allowed by rule data/AllowInternetOutBound (65001) at subnet data, outbound",
		}, "none: IPv6 is not carried"},
	} {
		t.Run(name, func(t *testing.T) {
			v := Evaluate(corpVNet(), corpResolvers(), Flow{
				Source: addr(c.from), Destination: addr(c.to), Protocol: c.protocol, DestinationPort: c.port, SourcePort: 40000,
			})
			if v.Allowed != c.allowed || v.Route != c.route {
				t.Errorf("allowed %v, route %q; want %v, %q", v.Allowed, v.Route, c.allowed, c.route)
			}
			var got []string
			for _, d := range v.Decisions {
				got = append(got, d.String())
			}
			if diff := cmp.Diff(c.decisions, got); diff != "" {
				t.Errorf("decisions (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDenialIsTheRuleThatDenied(t *testing.T) {
	v := Evaluate(corpVNet(), nil, Flow{Source: addr("10.20.1.9"), Destination: addr("10.20.1.4"), Protocol: core.ProtocolTCP, DestinationPort: 5432})
	d, ok := v.Denial()
	if !ok || d.String() != "denied by rule data/deny-all (4096) at subnet data, inbound" {
		t.Errorf("%v, %v", d, ok)
	}
	if d, ok := (Verdict{Decisions: v.Decisions[:1]}).Denial(); ok {
		t.Errorf("%v denies nothing", d)
	}
}

// TestRules asks one outbound rule that denies, before a rule that allows everything.
func TestRules(t *testing.T) {
	from := Flow{Source: addr("10.20.0.4"), Destination: addr("10.20.1.5"), Protocol: core.ProtocolTCP, SourcePort: 40000, DestinationPort: 5432}
	to := func(destination string, p core.Protocol, port uint16) Flow {
		f := from
		f.Destination, f.Protocol, f.DestinationPort = addr(destination), p, port
		return f
	}
	for name, c := range map[string]struct {
		rule    core.SecurityRule
		flow    Flow
		matches bool
	}{
		"nothing named":               {core.SecurityRule{Protocol: "Any"}, from, true},
		"Any beside others":           {core.SecurityRule{Protocol: "Any", Source: []string{"10.9.9.9", "Any"}}, from, true},
		"star beside ports":           {core.SecurityRule{Protocol: "TCP", DestinationPorts: []string{"80", "*"}}, from, true},
		"an address":                  {core.SecurityRule{Protocol: "TCP", Destination: []string{"10.20.1.5"}}, from, true},
		"a prefix with host bits":     {core.SecurityRule{Protocol: "TCP", Destination: []string{"10.20.1.77/24"}}, from, true},
		"another address":             {core.SecurityRule{Protocol: "TCP", Destination: []string{"10.20.1.6"}}, from, false},
		"the end of a range":          {core.SecurityRule{Protocol: "TCP", DestinationPorts: []string{"5000-5432"}}, from, true},
		"the start of a range":        {core.SecurityRule{Protocol: "TCP", DestinationPorts: []string{"5432-6000"}}, from, true},
		"past a range":                {core.SecurityRule{Protocol: "TCP", DestinationPorts: []string{"5000-5431"}}, from, false},
		"a source port":               {core.SecurityRule{Protocol: "TCP", SourcePorts: []string{"40000"}}, from, true},
		"the wrong protocol":          {core.SecurityRule{Protocol: "UDP"}, from, false},
		"ports with Any":              {core.SecurityRule{Protocol: "Any", DestinationPorts: []string{"5432"}}, from, true},
		"ports with Any, and ICMP":    {core.SecurityRule{Protocol: "Any", DestinationPorts: []string{"0-65535"}}, to("10.20.1.5", "ICMP", 0), false},
		"ports with ICMP":             {core.SecurityRule{Protocol: "ICMP", DestinationPorts: []string{"0-65535"}}, to("10.20.1.5", "ICMP", 0), false},
		"star with ICMP":              {core.SecurityRule{Protocol: "ICMP", DestinationPorts: []string{"*"}}, to("10.20.1.5", "ICMP", 0), true},
		"VirtualNetwork inside":       {core.SecurityRule{Protocol: "Any", Destination: []string{"VirtualNetwork"}}, from, true},
		"VirtualNetwork outside":      {core.SecurityRule{Protocol: "Any", Destination: []string{"VirtualNetwork"}}, to("198.51.100.7", "TCP", 1), false},
		"Internet outside":            {core.SecurityRule{Protocol: "Any", Destination: []string{"Internet"}}, to("198.51.100.7", "TCP", 1), true},
		"Internet is not link-local":  {core.SecurityRule{Protocol: "Any", Destination: []string{"Internet"}}, to("169.254.169.254", "TCP", 1), false},
		"Internet is not multicast":   {core.SecurityRule{Protocol: "Any", Destination: []string{"Internet"}}, to("239.1.1.1", "UDP", 1), false},
		"Internet is not loopback":    {core.SecurityRule{Protocol: "Any", Destination: []string{"Internet"}}, to("127.0.0.1", "TCP", 1), false},
		"LoadBalancer":                {core.SecurityRule{Protocol: "Any", Destination: []string{"LoadBalancer"}}, to("168.63.129.16", "TCP", 1), false},
		"PlatformTunnel":              {core.SecurityRule{Protocol: "Any", Destination: []string{"PlatformTunnel"}}, to("169.254.1.1", "TCP", 1), false},
		"DNS is exempt":               {core.SecurityRule{Protocol: "Any"}, to("10.20.0.2", "UDP", 53), false},
		"DNS by its address is too":   {core.SecurityRule{Protocol: "Any", Destination: []string{"10.20.0.2"}}, to("10.20.0.2", "UDP", 53), false},
		"DNS by its tag is not":       {core.SecurityRule{Protocol: "Any", Destination: []string{"PlatformDNS"}}, to("10.20.0.2", "UDP", 53), true},
		"DNS by its tag and protocol": {core.SecurityRule{Protocol: "TCP", Destination: []string{"PlatformDNS"}}, to("10.20.0.2", "UDP", 53), false},
	} {
		t.Run(name, func(t *testing.T) {
			v := corpVNet()
			c.rule.Name, c.rule.Priority, c.rule.Direction, c.rule.Access = "asked", 100, core.Outbound, core.Deny
			rest := core.SecurityRule{Name: "rest", Priority: 200, Direction: core.Outbound, Access: core.Allow, Protocol: core.ProtocolAny}
			v.NSGs[0].Rules = []core.SecurityRule{rest, c.rule}
			d, _ := Evaluate(v, corpResolvers(), c.flow).Denial()
			if got := d.Rule == "asked"; got != c.matches {
				t.Errorf("matches: %v", got)
			}
		})
	}
}

// TestTunnel: traffic to the relay meets only rules that name it, at the NIC, then at the
// subnet.
func TestTunnel(t *testing.T) {
	rule := func(name string, priority int, a core.Access, destination ...string) core.SecurityRule {
		return core.SecurityRule{Name: name, Priority: priority, Direction: core.Outbound, Access: a, Protocol: core.ProtocolAny, Destination: destination}
	}
	f := Flow{Source: addr("10.20.0.4"), Destination: addr(TunnelAddress), Protocol: core.ProtocolTCP, DestinationPort: 8483}
	for name, c := range map[string]struct {
		nic, subnet []core.SecurityRule
		want        Verdict
	}{
		"exempt": {
			[]core.SecurityRule{rule("all", 100, core.Deny)}, []core.SecurityRule{rule("address", 100, core.Deny, TunnelAddress, "Internet")},
			Verdict{Allowed: true, Route: "tunnel"},
		},
		"named at the subnet": {
			nil, []core.SecurityRule{rule("all", 100, core.Allow), rule("named", 110, core.Deny, "Internet", TagPlatformTunnel)},
			Verdict{Route: "tunnel", Decisions: []Decision{
				{NSG: "gateways", Rule: "named", Priority: 110, Direction: core.Outbound, Level: core.LevelSubnet, Subnet: "gateways", Access: core.Deny},
			}},
		},
		"named at the NIC": {
			[]core.SecurityRule{rule("named", 110, core.Deny, TagPlatformTunnel)}, []core.SecurityRule{rule("named", 110, core.Deny, TagPlatformTunnel)},
			Verdict{Route: "tunnel", Decisions: []Decision{
				{NSG: "nic", Rule: "named", Priority: 110, Direction: core.Outbound, Level: core.LevelNIC, Subnet: "gateways", Gateway: "bi", Access: core.Deny},
			}},
		},
	} {
		v := corpVNet()
		v.NSGs[0].Rules = c.subnet
		v.NSGs = append(v.NSGs, core.NetworkSecurityGroup{Name: "nic", Rules: c.nic})
		v.NICs = []core.GoalNIC{{Address: f.Source, Gateway: "bi", NSG: "nic"}}
		if diff := cmp.Diff(c.want, Evaluate(v, corpResolvers(), f)); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", name, diff)
		}
	}
}

func TestSubnetWithoutAnNSGAllows(t *testing.T) {
	v := corpVNet()
	v.Subnets[0].NSG, v.Subnets[1].NSG = "", ""
	got := Evaluate(v, nil, Flow{Source: addr("10.20.0.4"), Destination: addr("10.20.1.5"), Protocol: core.ProtocolTCP, DestinationPort: 22})
	if diff := cmp.Diff(Verdict{Allowed: true, Route: "VnetLocal"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestAMissingNSGOrNATGatewayPassesNothing(t *testing.T) {
	v := corpVNet()
	v.NSGs = v.NSGs[:1]
	got := Evaluate(v, nil, Flow{Source: addr("10.20.0.4"), Destination: addr("10.20.1.4"), Protocol: core.ProtocolTCP, DestinationPort: 5432})
	if got.Allowed || got.Route != "none: network security group data of subnet data is not known" {
		t.Errorf("without the NSG: %+v", got)
	}
	v = corpVNet()
	v.NATGateways = nil
	got = Evaluate(v, nil, Flow{Source: addr("10.20.0.4"), Destination: addr("198.51.100.7"), Protocol: core.ProtocolTCP, DestinationPort: 443})
	if got.Allowed || got.Route != "none: NAT gateway egress of subnet gateways is not known" {
		t.Errorf("without the NAT gateway: %+v", got)
	}
}
