package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/sluice-gateway/sluice/internal/core"
)

// routed is a network of two subnets, a with the routes, that is connected to hub.
func routed(routes ...core.Route) core.GoalVNet {
	return core.GoalVNet{
		Name: "spoke", AddressSpace: []netip.Prefix{prefix("10.20.0.0/16")},
		Subnets: []core.Subnet{
			{Name: "a", Prefix: prefix("10.20.0.0/24"), RouteTable: "private", NATGateway: "egress"},
			{Name: "b", Prefix: prefix("10.20.1.0/24")},
		},
		NATGateways: []core.GoalNATGateway{{NATGateway: core.NATGateway{Name: "egress"}}},
		RouteTables: []core.RouteTable{{Name: "private", Routes: routes}},
		Peers:       []core.GoalPeer{{UID: "h", Name: "hub", AddressSpace: []netip.Prefix{prefix("10.30.0.0/16")}}},
		Endpoints:   []core.GoalEndpoint{{Name: "db", Subnet: "b", Address: addr("10.20.1.9"), Port: 5432}},
		Uplinks: []core.GoalUplink{{Uplink: core.Uplink{Name: "lan", Host: "h1", Addressing: core.UplinkAddressing{
			Mode: core.AddressingStatic, Network: prefix("192.168.7.0/24"), Address: addr("192.168.7.2"),
		}}}},
	}
}

func hop(name, p string, h core.NextHop) core.Route {
	return core.Route{Name: name, Prefix: prefix(p), NextHop: h}
}

func appliance(name, p, a string) core.Route {
	return core.Route{Name: name, Prefix: prefix(p), NextHop: core.HopVirtualAppliance, Address: addr(a)}
}

func TestRouteThatDecides(t *testing.T) {
	t.Parallel()
	none := func(n, p string) []core.Route { return []core.Route{hop(n, p, core.HopNone)} }
	for name, c := range map[string]struct {
		routes    []core.Route
		to        string
		route, by string
	}{
		"the network's own":           {nil, "10.20.1.5", "VnetLocal", "system route 10.20.0.0/16 → VnetLocal"},
		"the Internet":                {nil, "198.51.100.7", "NAT gateway egress", "system route 0.0.0.0/0 → Internet egress"},
		"a peer":                      {nil, "10.30.0.5", "Peering hub", "system route 10.30.0.0/16 → Peering hub"},
		"user-defined over system":    {none("x", "10.20.0.0/16"), "10.20.1.5", "none: route private/x (10.20.0.0/16 → None)", "route private/x (10.20.0.0/16 → None)"},
		"system, longer":              {none("x", "10.0.0.0/8"), "10.20.1.5", "VnetLocal", "system route 10.20.0.0/16 → VnetLocal"},
		"user-defined, longer":        {none("x", "10.20.1.0/24"), "10.20.1.9", "none: route private/x (10.20.1.0/24 → None)", "route private/x (10.20.1.0/24 → None)"},
		"beside it":                   {none("x", "10.20.1.0/24"), "10.20.0.5", "VnetLocal", "system route 10.20.0.0/16 → VnetLocal"},
		"no way out":                  {none("x", "0.0.0.0/0"), "198.51.100.7", "none: route private/x (0.0.0.0/0 → None)", "route private/x (0.0.0.0/0 → None)"},
		"no way to a peer":            {none("x", "10.30.0.0/16"), "10.30.0.5", "none: route private/x (10.30.0.0/16 → None)", "route private/x (10.30.0.0/16 → None)"},
		"the resolver, whatever":      {none("x", "10.20.0.2/32"), "10.20.0.2", "none: the resolver 10.20.0.2 answers on port 53 only", ""},
		"link-local, whatever":        {none("x", "0.0.0.0/0"), "169.254.1.1", "none: 169.254.1.1 is a link-local address", "system route 169.254.0.0/16 → None"},
		"an exception":                {append(none("x", "10.20.0.0/16"), hop("y", "10.20.1.0/24", core.HopVnetLocal)), "10.20.1.5", "VnetLocal", "route private/y (10.20.1.0/24 → VnetLocal)"},
		"an exception to a peer":      {append(none("x", "10.30.0.0/16"), hop("y", "10.30.1.0/24", core.HopPeering)), "10.30.1.5", "Peering hub", "route private/y (10.30.1.0/24 → Peering hub)"},
		"VnetLocal outside":           {[]core.Route{hop("x", "10.40.0.0/16", core.HopVnetLocal)}, "10.40.0.1", "none: route private/x (10.40.0.0/16 → VnetLocal) leads nowhere: 10.40.0.0/16 is not inside the address space of virtual network spoke", "route private/x (10.40.0.0/16 → VnetLocal)"},
		"Peering to nobody":           {[]core.Route{hop("x", "10.40.0.0/16", core.HopPeering)}, "10.40.0.1", "none: route private/x (10.40.0.0/16 → Peering) leads nowhere: 10.40.0.0/16 is not inside a network that spoke is connected to", "route private/x (10.40.0.0/16 → Peering)"},
		"an appliance":                {[]core.Route{appliance("x", "0.0.0.0/0", "192.168.7.5")}, "198.51.100.7", "VirtualAppliance 192.168.7.5", "route private/x (0.0.0.0/0 → VirtualAppliance 192.168.7.5)"},
		"an appliance, not inside":    {[]core.Route{appliance("x", "0.0.0.0/0", "192.168.7.5")}, "10.20.1.5", "VnetLocal", "system route 10.20.0.0/16 → VnetLocal"},
		"an appliance for inside":     {[]core.Route{appliance("x", "10.20.1.0/24", "192.168.7.5")}, "10.20.1.9", "none: route private/x (10.20.1.0/24 → VirtualAppliance 192.168.7.5) leads nowhere: 10.20.1.0/24 is inside virtual network spoke or a peer, and an appliance behind an uplink is outside", "route private/x (10.20.1.0/24 → VirtualAppliance 192.168.7.5)"},
		"a member as appliance":       {[]core.Route{appliance("x", "0.0.0.0/0", "10.20.1.7")}, "198.51.100.7", "none: route private/x (0.0.0.0/0 → VirtualAppliance 10.20.1.7) leads nowhere: 10.20.1.7 is on no network of an uplink of virtual network spoke", "route private/x (0.0.0.0/0 → VirtualAppliance 10.20.1.7)"},
		"the Internet for an address": {append(none("x", "0.0.0.0/0"), hop("y", "198.51.100.0/24", core.HopInternet)), "198.51.100.7", "NAT gateway egress", "route private/y (198.51.100.0/24 → Internet egress)"},
		"a peer by the Internet":      {[]core.Route{hop("x", "10.30.0.0/16", core.HopInternet)}, "10.30.0.5", "none: route private/x (10.30.0.0/16 → Internet egress) leads to the Internet, and 10.30.0.5 is inside the virtual network or a peer", "route private/x (10.30.0.0/16 → Internet egress)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := NewEvaluator(routed(c.routes...), []netip.Addr{addr("10.20.0.2")})
			f := Flow{Source: addr("10.20.0.4"), Destination: addr(c.to), Protocol: core.ProtocolTCP, DestinationPort: 5432}
			if v := e.Evaluate(f); v.Route != c.route || v.Allowed == strings.HasPrefix(c.route, "none") {
				t.Errorf("%+v; want route %q", v, c.route)
			}
			by, _ := e.Deciding(f)
			if got := by.String(); by.Name != "" && got != c.by || by.Name == "" && c.by != "" {
				t.Errorf("decided by %q; want %q", got, c.by)
			}
		})
	}
}

func TestEffectiveRoutes(t *testing.T) {
	t.Parallel()
	v := routed(hop("out", "0.0.0.0/0", core.HopNone), hop("x", "10.20.1.0/24", core.HopNone))
	var got []string
	for _, r := range EffectiveRoutes(v, v.Subnets[0]) {
		s := r.String()
		if r.Overridden {
			s += " (overridden)"
		}
		got = append(got, s)
	}
	want := []string{
		"route private/out (0.0.0.0/0 → None)", "system route 0.0.0.0/0 → Internet egress (overridden)",
		"system route 10.20.0.0/16 → VnetLocal", "route private/x (10.20.1.0/24 → None)", "system route 10.30.0.0/16 → Peering hub",
		"system route 127.0.0.0/8 → None", "system route 169.254.0.0/16 → None", "system route 192.168.7.0/24 → Uplink lan", "system route 224.0.0.0/4 → None",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestRoutesOfAnUplink holds that a user-defined route goes before an uplink's of the same
// prefix, and that one to Uplink leads where the uplink's own would.
func TestRoutesOfAnUplink(t *testing.T) {
	t.Parallel()
	v := routed(hop("x", "192.168.0.0/16", core.HopNone), hop("y", "192.168.1.0/24", core.HopUplink))
	v.Uplinks = []core.GoalUplink{{Uplink: core.Uplink{Name: "lan", Prefixes: []netip.Prefix{prefix("192.168.0.0/16"), prefix("172.16.0.0/12")}}}}
	for to, want := range map[string]string{
		"192.168.7.7": "none: route private/x (192.168.0.0/16 → None)", "192.168.1.7": "Uplink lan", "172.16.0.1": "Uplink lan",
	} {
		got := Evaluate(v, nil, Flow{Source: addr("10.20.0.4"), Destination: addr(to), Protocol: core.ProtocolTCP, DestinationPort: 80})
		if got.Route != want {
			t.Errorf("%s: %q; want %q", to, got.Route, want)
		}
	}
}

func TestCompiledRoutes(t *testing.T) {
	t.Parallel()
	v := routed(hop("out", "0.0.0.0/0", core.HopInternet), hop("x", "10.20.0.0/16", core.HopNone),
		hop("y", "10.30.1.0/24", core.HopPeering), appliance("z", "10.40.0.0/16", "192.168.7.5"))
	want := []TableRoute{
		{Prefix: prefix("0.0.0.0/0"), Kind: HopNAT, Name: "egress"}, {Prefix: prefix("10.20.0.0/16"), Kind: HopDrop},
		{Prefix: prefix("10.20.0.2/32")}, {Prefix: prefix("10.30.0.0/16")}, {Prefix: prefix("10.30.1.0/24")},
		{Prefix: prefix("10.40.0.0/16"), Kind: HopHost, Via: addr("192.168.7.5")},
		{Prefix: prefix("127.0.0.0/8")}, {Prefix: prefix("169.254.0.0/16")}, {Prefix: prefix("192.168.7.0/24")}, {Prefix: prefix("224.0.0.0/4")},
	}
	got := CompileRoutes(v, v.Subnets[0], []netip.Addr{addr("10.20.0.2")})
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
		t.Error(diff)
	}
	if got := CompileRoutes(v, v.Subnets[1], nil); got != nil {
		t.Errorf("a subnet without a route table: %v", got)
	}
}

// TestPeersRules holds that a flow to a peer meets the source's outbound rules and the
// destination's inbound ones, and that VirtualNetwork means both networks in both.
func TestPeersRules(t *testing.T) {
	t.Parallel()
	spoke := routed()
	hub := core.GoalVNet{
		Name: "hub", AddressSpace: []netip.Prefix{prefix("10.30.0.0/16")},
		Subnets:   []core.Subnet{{Name: "data", Prefix: prefix("10.30.0.0/24"), NSG: "data"}},
		Peers:     []core.GoalPeer{{UID: "s", Name: "spoke", AddressSpace: spoke.AddressSpace}},
		Endpoints: []core.GoalEndpoint{{Name: "db", Subnet: "data", Address: addr("10.30.0.9"), Port: 5432}},
		NSGs: []core.NetworkSecurityGroup{{Name: "data", Rules: []core.SecurityRule{{
			Name: "no-b", Priority: 100, Direction: core.Inbound, Access: core.Deny, Protocol: core.ProtocolAny, Source: []string{"10.20.1.0/24"},
		}}}},
	}
	spoke.NSGs = []core.NetworkSecurityGroup{{Name: "out", Rules: []core.SecurityRule{{
		Name: "no-ssh", Priority: 100, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolTCP, DestinationPorts: []string{"22"},
	}}}}
	spoke.Subnets[0].NSG = "out"
	for name, c := range map[string]struct {
		from, to string
		port     uint16
		want     string
	}{
		"allowed by both": {"10.20.0.4", "10.30.0.9", 5432, "true Peering hub: allowed by rule out/AllowVnetOutBound (65000) at subnet a, outbound; " +
			"allowed by rule data/AllowVnetInBound (65000) at subnet data, inbound"},
		"denied by the source": {"10.20.0.4", "10.30.0.5", 22, "false Peering hub: denied by rule out/no-ssh (100) at subnet a, outbound"},
		"denied there":         {"10.20.1.4", "10.30.0.9", 5432, "false Peering hub: denied by rule data/no-b (100) at subnet data, inbound"},
		"nobody listens":       {"10.20.1.4", "10.30.0.9", 80, "false none: private endpoint db answers on TCP port 5432 only: "},
		"its resolver":         {"10.20.1.4", "10.30.0.2", 53, "false none: the resolver 10.30.0.2 answers virtual network hub only: "},
	} {
		e := NewEvaluator(spoke, nil)
		e.AddPeer(hub, []netip.Addr{addr("10.30.0.2")})
		v := e.Evaluate(Flow{Source: addr(c.from), Destination: addr(c.to), Protocol: core.ProtocolTCP, DestinationPort: c.port})
		var decisions []string
		for _, d := range v.Decisions {
			decisions = append(decisions, d.String())
		}
		got := map[bool]string{true: "true ", false: "false "}[v.Allowed] + v.Route + ": " + strings.Join(decisions, "; ")
		if got != c.want {
			t.Errorf("%s: %s; want %s", name, got, c.want)
		}
	}
}

func TestFlowFromAPeerMeetsTheInboundRules(t *testing.T) {
	t.Parallel()
	v := routed()
	v.NSGs = []core.NetworkSecurityGroup{denyAll("in", core.Inbound)}
	v.Subnets[1].NSG = "in"
	for to, want := range map[string]string{
		"10.20.0.5": "VnetLocal", "10.20.1.9": "VnetLocal", "10.40.0.1": "none: 10.40.0.1 is in no subnet of virtual network spoke: peering is not transitive",
	} {
		got := Evaluate(v, nil, Flow{Source: addr("10.30.0.4"), Destination: addr(to), Protocol: core.ProtocolTCP, DestinationPort: 5432})
		if got.Route != want || got.Allowed != (to == "10.20.0.5") {
			t.Errorf("%s: %+v", to, got)
		}
	}
}

func TestCompileRefusesAPeerWithTheSameAddresses(t *testing.T) {
	t.Parallel()
	v := routed()
	v.Peers[0].AddressSpace = []netip.Prefix{prefix("10.20.7.0/24")}
	_, err := CompileVNet(VNetInput{VNet: v, PeerInterfaces: map[string]string{"h": "p0"}})
	if err == nil || !strings.Contains(err.Error(), "10.20.7.0/24 of peer hub overlaps the address space of virtual network spoke") {
		t.Error(err)
	}
}
