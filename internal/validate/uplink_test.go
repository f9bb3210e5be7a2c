package validate_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-gateway/sluice/internal/config"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/validate"
)

// joined is an uplink that is in order; the cases spoil it.
func joined(change func(*core.Uplink)) core.Uplink {
	u := core.Uplink{
		Name: "plant", Host: "vm-1", Device: "eth1", Prefixes: prefixes("10.0.0.0/8"),
		Addressing: core.UplinkAddressing{
			Mode: core.AddressingStatic, Network: prefix("192.168.10.0/24"),
			Address: netip.MustParseAddr("192.168.10.20"), Gateway: netip.MustParseAddr("192.168.10.1"),
		},
	}
	if change != nil {
		change(&u)
	}
	return u
}

func uplinks(list ...core.Uplink) func(*world) {
	return func(w *world) { w.vnet.Uplinks = list }
}

func spoilt(change func(*core.Uplink)) func(*world) { return uplinks(joined(change)) }

// leasing makes a part of the uplink's network the subnet lan.
func leasing(subnet string, change func(*core.Uplink)) func(*world) {
	return func(w *world) {
		w.vnet.AddressSpace = append(w.vnet.AddressSpace, prefix(subnet))
		w.vnet.Subnets = append(w.vnet.Subnets, core.Subnet{Name: "lan", Prefix: prefix(subnet)})
		u := joined(func(u *core.Uplink) {
			u.Addressing.Mode, u.Addressing.Subnet, u.Addressing.Address = core.AddressingRange, "lan", netip.Addr{}
		})
		if change != nil {
			change(&u)
		}
		w.vnet.Uplinks = []core.Uplink{u}
	}
}

// dhcpLeasing leases the subnet's addresses by DHCP.
func dhcpLeasing(change func(*core.VirtualNetwork)) func(*world) {
	return func(w *world) {
		leasing("192.168.10.128/26", func(u *core.Uplink) { u.Addressing.Mode = core.AddressingDHCP })(w)
		w.vnet.Subnets[len(w.vnet.Subnets)-1].Delegation = core.DelegationGateways
		if change != nil {
			change(w.vnet)
		}
	}
}

func TestUplinks(t *testing.T) {
	const at = "VirtualNetwork/corp uplinks[0]"
	vlan := func(parent string, id int) func(*core.Uplink) {
		return func(u *core.Uplink) { u.Device, u.VLAN = "", core.UplinkVLAN{Parent: parent, ID: id} }
	}
	run(t, map[string]testCase{
		"static": {spoilt(nil), ""},
		"range":  {leasing("192.168.10.128/26", nil), ""},
		"a TUN": {spoilt(func(u *core.Uplink) {
			u.Device, u.TUN, u.Addressing = "", "wg0", core.UplinkAddressing{Mode: core.AddressingStatic}
		}), ""},
		"a bridge":    {spoilt(func(u *core.Uplink) { u.Device, u.Bridge = "", "br0" }), ""},
		"a VLAN":      {spoilt(vlan("eth1", 7)), ""},
		"VLAN 4095":   {spoilt(vlan("eth1", 4095)), at + ".vlan.id: 4095 is not a VLAN: 1 to 4094"},
		"no host":     {spoilt(func(u *core.Uplink) { u.Host = "" }), at + ".host: is missing: the name of the host that has the device"},
		"no device":   {spoilt(func(u *core.Uplink) { u.Device = "" }), at + ": needs one of device, vlan, bridge and tun, not 0"},
		"two devices": {spoilt(func(u *core.Uplink) { u.Bridge = "br0" }), at + ": needs one of device, vlan, bridge and tun, not 2"},
		"no name of a device": {spoilt(func(u *core.Uplink) { u.Device = "eth1/../x" }),
			at + `.device: "eth1/../x" is not the name of a network device: up to 15 characters, no space, slash or colon`},
		"DHCP": {dhcpLeasing(nil), ""},
		"DHCP without a subnet": {spoilt(func(u *core.Uplink) { u.Addressing.Mode, u.Addressing.Address = core.AddressingDHCP, netip.Addr{} }),
			at + ".addressing.subnet: is missing: the subnet whose addresses are handed out of the network"},
		"DHCP of a subnet that is not delegated": {leasing("192.168.10.128/26", func(u *core.Uplink) { u.Addressing.Mode = core.AddressingDHCP }),
			at + `.addressing.subnet: subnet "lan" is not delegated to sluice/gateways: only members lease addresses by DHCP`},
		"DHCP with an address": {dhcpLeasing(func(v *core.VirtualNetwork) { v.Uplinks[0].Addressing.Address = netip.MustParseAddr("192.168.10.20") }),
			at + ".addressing.address: belongs to the mode static: with range it is the second address of the subnet, with dhcp it is leased"},
		"DHCP and range for one subnet": {dhcpLeasing(func(v *core.VirtualNetwork) {
			other := v.Uplinks[0]
			other.Name, other.Host, other.Addressing.Mode = "b", "vm-2", core.AddressingRange
			v.Uplinks = append(v.Uplinks, other)
		}), at + `.addressing.mode: uplinks[1] hands out subnet "lan" as a range`},
		"DHCP on a TUN": {dhcpLeasing(func(v *core.VirtualNetwork) {
			u := &v.Uplinks[0]
			u.Device, u.TUN, u.Addressing.Gateway = "", "wg0", netip.Addr{}
		}), at + ".addressing.mode: dhcp needs ARP, which a TUN has not"},
		"no mode": {spoilt(func(u *core.Uplink) { u.Addressing.Mode = "" }), at + ".addressing.mode: is missing: one of static, range, dhcp"},
		"everything": {spoilt(func(u *core.Uplink) { u.Prefixes = prefixes("0.0.0.0/0") }),
			at + ".prefixes[0]: 0.0.0.0/0 is everything, and so would be the tag VirtualNetwork"},
		"inside the address space": {spoilt(func(u *core.Uplink) { u.Prefixes = prefixes("10.20.9.0/24") }),
			at + ".prefixes[0]: 10.20.9.0/24 is inside the address space 10.20.0.0/16: nothing of it lies behind an uplink"},
		"no gateway": {spoilt(func(u *core.Uplink) { u.Addressing.Gateway = netip.Addr{} }),
			at + ".addressing.gateway: is missing: 10.0.0.0/8 (prefixes[0]) is not on the network 192.168.10.0/24"},
		"a gateway elsewhere": {spoilt(func(u *core.Uplink) { u.Addressing.Gateway = netip.MustParseAddr("192.168.11.1") }),
			at + ".addressing.gateway: 192.168.11.1 is not on the network 192.168.10.0/24"},
		"no address": {spoilt(func(u *core.Uplink) { u.Addressing.Address = netip.Addr{} }),
			at + ".addressing.address: is missing: the uplink's own address on its network"},
		"the broadcast address": {spoilt(func(u *core.Uplink) { u.Addressing.Address = netip.MustParseAddr("192.168.10.255") }),
			at + ".addressing.address: 192.168.10.255 is the first or the last address of 192.168.10.0/24, which no machine has"},
		"the gateway's address": {spoilt(func(u *core.Uplink) { u.Addressing.Address = u.Addressing.Gateway }),
			at + ".addressing.address: 192.168.10.1 is the gateway's"},
		"no network": {spoilt(func(u *core.Uplink) { u.Prefixes, u.Addressing.Network = prefixes("10.0.0.0/8"), netip.Prefix{} }),
			at + ".addressing.network: is missing: the prefix of the network that device eth1 is on, such as 192.168.10.0/24"},
		"range on a TUN": {leasing("192.168.10.128/26", func(u *core.Uplink) { u.Device, u.TUN, u.Addressing.Gateway = "", "wg0", netip.Addr{} }),
			at + ".addressing.mode: range needs ARP, which a TUN has not"},
		"range of a subnet elsewhere": {leasing("192.168.12.0/26", nil),
			at + `.addressing.subnet: 192.168.12.0/26 of subnet "lan" is not a part of the network 192.168.10.0/24`},
		"a name twice": {uplinks(joined(nil), joined(func(u *core.Uplink) { u.Host = "vm-2" })),
			`VirtualNetwork/corp uplinks[1].name: another uplink of this network is named "plant"`},
		"a device twice": {uplinks(joined(nil), joined(func(u *core.Uplink) {
			u.Name, u.Prefixes, u.Addressing.Network = "b", prefixes("10.128.0.0/9"), prefix("192.168.10.0/25")
		})), `VirtualNetwork/corp uplinks[1]: device eth1 is taken by uplinks[0] of VirtualNetwork/corp, which has it for itself`},
		"a lent device as a parent, in another network": {func(w *world) {
			w.vnet.Uplinks = []core.Uplink{joined(nil)}
			w.others = append(w.others, &core.VirtualNetwork{
				Name: "other", AddressSpace: prefixes("10.30.0.0/16"), Uplinks: []core.Uplink{joined(vlan("eth1", 7))},
			})
		}, `VirtualNetwork/other uplinks[0]: vlan 7 of eth1 is taken by uplinks[0] of VirtualNetwork/corp, which has it for itself`},
		"a prefix twice": {uplinks(joined(nil), joined(func(u *core.Uplink) {
			u.Name, u.Device, u.Addressing.Network = "b", "eth2", prefix("192.168.10.0/25")
		})), `VirtualNetwork/corp uplinks[1].prefixes: 10.0.0.0/8 is reached by uplink "plant" already`},
	})
}

// TestUplinkInYAML reads what the documentation shows, and what is mistyped.
func TestUplinkInYAML(t *testing.T) {
	text := `kind: VirtualNetwork
name: plant
addressSpace: [192.168.10.128/26]
subnets:
  - {name: gateways, prefix: 192.168.10.128/26, delegation: sluice/gateways}
uplinks:
  - name: lan
    host: vm-1
    bridge: br0
    prefixes: [10.0.0.0/8]
    addressing: {mode: range, network: 192.168.10.0/24, gateway: 192.168.10.1, subnet: gateways}
  - {name: cloud, host: vm-1, tun: wg0, prefixes: [172.16.0.0/16]}
  - {name: lab, host: vm-1, vlan: {parent: eth1, id: 7}, addressing: {mode: static, network: 172.17.0.0/24, address: 172.17.0.9}}
`
	res, err := config.Read(config.Options{}, "plant.yaml", strings.NewReader(text))
	if err != nil || len(res.Documents) != 1 {
		t.Fatalf("%d documents, %v", len(res.Documents), err)
	}
	v := core.New(core.KindVirtualNetwork)
	if err := json.Unmarshal(res.Documents[0].JSON, v); err != nil {
		t.Fatal(err)
	}
	validate.Defaults(v)
	if problems := validate.Set([]core.Resource{v}); len(problems) > 0 {
		t.Errorf("refused: %s", lines(problems))
	}
	if mode := v.(*core.VirtualNetwork).Uplinks[1].Addressing.Mode; mode != core.AddressingStatic {
		t.Errorf("the mode of a TUN is %q", mode)
	}
	_, err = config.Read(config.Options{}, "plant.yaml", strings.NewReader(strings.Replace(text, "parent:", "paren:", 1)))
	if err == nil || !strings.Contains(err.Error(), `unknown field "paren": did you mean "parent"?`) {
		t.Errorf("the mistake is worded %v", err)
	}
}
