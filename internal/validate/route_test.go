package validate_test

import (
	"net/netip"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/validate"
)

// table gives the subnet gateways a route table.
func (w *world) table(routes ...core.Route) {
	w.others = append(w.others, &core.RouteTable{Name: "private", Routes: routes})
	w.vnet.Subnets[0].RouteTable = "private"
}

func TestRouteTables(t *testing.T) {
	hop := func(p string, h core.NextHop) core.Route { return core.Route{Name: "r", Prefix: prefix(p), NextHop: h} }
	appliance := func(a string) core.Route {
		return core.Route{Name: "r", Prefix: prefix("0.0.0.0/0"), NextHop: core.HopVirtualAppliance, Address: netip.MustParseAddr(a)}
	}
	run(t, map[string]testCase{
		"one of each": {func(w *world) {
			w.uplink()
			w.table(core.Route{Name: "a", Prefix: prefix("10.20.1.0/24"), NextHop: core.HopNone},
				core.Route{Name: "b", Prefix: prefix("10.20.1.4/32"), NextHop: core.HopVnetLocal},
				core.Route{Name: "c", Prefix: prefix("0.0.0.0/0"), NextHop: core.HopVirtualAppliance, Address: netip.MustParseAddr("192.168.7.5")},
				core.Route{Name: "d", Prefix: prefix("198.51.100.0/24"), NextHop: core.HopInternet},
				core.Route{Name: "e", Prefix: prefix("10.30.0.0/16"), NextHop: core.HopPeering})
		}, ""},
		"a table that is not there": {func(w *world) { w.vnet.Subnets[1].RouteTable = "privat" },
			`VirtualNetwork/corp subnets[1].routeTable: there is no RouteTable "privat"`},
		"no next hop": {func(w *world) { w.table(hop("10.9.0.0/16", "")) },
			"RouteTable/private routes[0].nextHop: is missing: one of VnetLocal, Peering, Uplink, VirtualAppliance, Internet, None"},
		"host bits": {func(w *world) { w.table(hop("10.9.0.1/16", core.HopNone)) }, "RouteTable/private routes[0].prefix: 10.9.0.1/16 has host bits set"},
		"link-local": {func(w *world) { w.table(hop("169.254.1.0/24", core.HopInternet)) },
			"RouteTable/private routes[0].prefix: 169.254.1.0/24 lies in what is never routed: the tunnels (169.254.0.0/16)"},
		"a prefix twice": {func(w *world) {
			w.table(hop("10.9.0.0/16", core.HopNone), core.Route{Name: "s", Prefix: prefix("10.9.0.0/16"), NextHop: core.HopVnetLocal})
		}, `RouteTable/private routes[1].prefix: route "r" (routes[0]) has the prefix 10.9.0.0/16 already`},
		"a name twice": {func(w *world) { w.table(hop("10.9.0.0/16", core.HopNone), hop("10.8.0.0/16", core.HopNone)) },
			`RouteTable/private routes[1].name: another route of this table is named "r"`},
		"an appliance without address": {func(w *world) { w.table(hop("0.0.0.0/0", core.HopVirtualAppliance)) },
			"RouteTable/private routes[0].address: is missing: the IPv4 address of the appliance"},
		"an appliance elsewhere": {func(w *world) { w.table(appliance("10.30.0.4")) },
			`VirtualNetwork/corp subnets[0].routeTable: route "r" of RouteTable/private: the appliance 10.30.0.4 is on no network of an uplink of VirtualNetwork/corp`},
		"a member as appliance": {func(w *world) { w.table(appliance("10.20.0.9")) },
			`VirtualNetwork/corp subnets[0].routeTable: route "r" of RouteTable/private: the appliance 10.20.0.9 is inside VirtualNetwork/corp, where members and private endpoints are, which forward nothing: an appliance is on the network of an uplink`},
		"an appliance for addresses inside": {func(w *world) {
			w.uplink()
			w.table(core.Route{Name: "r", Prefix: prefix("10.20.1.0/24"), NextHop: core.HopVirtualAppliance, Address: netip.MustParseAddr("192.168.7.5")})
		}, `VirtualNetwork/corp subnets[0].routeTable: route "r" of RouteTable/private: the appliance 192.168.7.5 is outside of VirtualNetwork/corp, and 10.20.1.0/24 is inside`},
		"the network's own addresses to the Internet": {func(w *world) { w.table(hop("10.20.1.0/24", core.HopInternet)) },
			`VirtualNetwork/corp subnets[0].routeTable: route "r" of RouteTable/private sends 10.20.1.0/24 to the Internet, which is inside the address space 10.20.0.0/16`},
	})
}

// uplink joins corp to 192.168.7.0/24.
func (w *world) uplink() {
	w.vnet.Uplinks = []core.Uplink{{Name: "lan", Host: "vm-1", Device: "eth1", Addressing: core.UplinkAddressing{
		Mode: core.AddressingStatic, Network: prefix("192.168.7.0/24"), Gateway: netip.MustParseAddr("192.168.7.1"), Address: netip.MustParseAddr("192.168.7.2"),
	}}}
}

// peer adds another network, which names corp back.
func (w *world) peer(name, space string) {
	w.vnet.Peerings = append(w.vnet.Peerings, core.Peering{Name: "to-" + name, Remote: name})
	w.others = append(w.others, &core.VirtualNetwork{
		Name: name, AddressSpace: prefixes(space), Peerings: []core.Peering{{Name: "back", Remote: "corp"}},
	})
}

// peerUplink gives the network that was added last an uplink.
func (w *world) peerUplink(u core.Uplink) {
	v := w.others[len(w.others)-1].(*core.VirtualNetwork)
	v.Uplinks = append(v.Uplinks, u)
}

func TestPeerings(t *testing.T) {
	run(t, map[string]testCase{
		"two peers": {func(w *world) { w.peer("hub", "10.30.0.0/16"); w.peer("lab", "10.40.0.0/16") }, ""},
		"a network that is not there": {func(w *world) { w.vnet.Peerings = []core.Peering{{Name: "p", Remote: "hub"}} },
			`VirtualNetwork/corp peerings[0].remote: there is no VirtualNetwork "hub"`},
		"itself": {func(w *world) { w.vnet.Peerings = []core.Peering{{Name: "p", Remote: "corp"}} },
			"VirtualNetwork/corp peerings[0].remote: is this network itself"},
		"the same addresses": {func(w *world) { w.peer("hub", "10.20.128.0/17") },
			"VirtualNetwork/corp peerings[0].remote: 10.20.0.0/16 of VirtualNetwork/corp overlaps 10.20.128.0/17 of VirtualNetwork/hub: within a network and its peers no addresses may overlap\n" +
				"VirtualNetwork/hub peerings[0].remote: 10.20.128.0/17 of VirtualNetwork/hub overlaps 10.20.0.0/16 of VirtualNetwork/corp: within a network and its peers no addresses may overlap"},
		"two peers with the same addresses": {func(w *world) { w.peer("hub", "10.30.0.0/16"); w.peer("lab", "10.30.1.0/24") },
			"VirtualNetwork/corp peerings[1].remote: 10.30.1.0/24 of VirtualNetwork/lab overlaps 10.30.0.0/16 of VirtualNetwork/hub: within a network and its peers no addresses may overlap"},
		"an uplink that leads to a peer's addresses": {func(w *world) {
			w.peer("hub", "10.30.0.0/16")
			w.vnet.Uplinks = []core.Uplink{joined(nil)}
		}, "VirtualNetwork/corp peerings[0].remote: 10.0.0.0/8 of uplink plant of VirtualNetwork/corp overlaps 10.30.0.0/16 of VirtualNetwork/hub: within a network and its peers no addresses may overlap\n" +
			"VirtualNetwork/hub peerings[0].remote: 10.30.0.0/16 of VirtualNetwork/hub overlaps 10.0.0.0/8 of uplink plant of VirtualNetwork/corp: within a network and its peers no addresses may overlap"},
		"a peer's uplink that leads to the same": {func(w *world) {
			w.peer("hub", "172.16.0.0/16")
			w.vnet.Uplinks = []core.Uplink{joined(nil)}
			w.peerUplink(joined(func(u *core.Uplink) {
				u.Name, u.Host, u.Prefixes, u.Addressing.Network = "office", "vm-2", prefixes("10.7.0.0/16"), prefix("172.20.0.0/24")
				u.Addressing.Address, u.Addressing.Gateway = netip.MustParseAddr("172.20.0.20"), netip.MustParseAddr("172.20.0.1")
			}))
		}, "VirtualNetwork/corp peerings[0].remote: 10.0.0.0/8 of uplink plant of VirtualNetwork/corp overlaps 10.7.0.0/16 of uplink office of VirtualNetwork/hub: within a network and its peers no addresses may overlap\n" +
			"VirtualNetwork/hub peerings[0].remote: 10.7.0.0/16 of uplink office of VirtualNetwork/hub overlaps 10.0.0.0/8 of uplink plant of VirtualNetwork/corp: within a network and its peers no addresses may overlap"},
		"peers with uplinks apart": {func(w *world) {
			w.peer("hub", "172.16.0.0/16")
			w.vnet.Uplinks = []core.Uplink{joined(nil)}
			w.peerUplink(joined(func(u *core.Uplink) {
				u.Host, u.Prefixes, u.Addressing.Network = "vm-2", nil, prefix("172.20.0.0/24")
				u.Addressing.Address, u.Addressing.Gateway = netip.MustParseAddr("172.20.0.20"), netip.MustParseAddr("172.20.0.1")
			}))
		}, ""},
		"one network twice": {func(w *world) {
			w.peer("hub", "10.30.0.0/16")
			w.vnet.Peerings = append(w.vnet.Peerings, core.Peering{Name: "again", Remote: "hub"})
		}, `VirtualNetwork/corp peerings[1].remote: peering "to-hub" names hub already`},
	})
}

func TestDeletingWhatRoutesStandOn(t *testing.T) {
	w := valid()
	w.table()
	w.peer("hub", "10.30.0.0/16")
	for _, c := range []struct {
		kind       core.Kind
		name, want string
	}{
		{core.KindRouteTable, "private", "VirtualNetwork/corp subnets[0].routeTable"},
		{core.KindVirtualNetwork, "hub", "VirtualNetwork/corp peerings[0].remote"},
	} {
		if got := validate.DeleteBlockers(w.set(), c.kind, c.name); len(got) != 1 || got[0] != c.want {
			t.Errorf("%s/%s: %v; want %s", c.kind, c.name, got, c.want)
		}
	}
}
