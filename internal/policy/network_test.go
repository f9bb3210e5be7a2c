package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
)

// testMember is a member of the test network and the namespace that it is in.
type testMember struct {
	ns string
	PortBinding
}

// network is a virtual network in the kernel: a namespace for it, one per member, and
// one in the NAT gateway's place.
type network struct {
	*lab
	members   []testMember
	resolvers []netip.Addr
	endpoints []core.GoalEndpoint
	captures  map[string]*capture
	raw       map[string]int
	change    func(*VNetInput)
	drops     map[string]bool // the labels of the rules in force that drop
}

const routerMAC = "02:aa:00:00:00:01"

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{lab: newLab(t), captures: map[string]*capture{}, raw: map[string]int{}}
	for i, m := range []struct{ address, subnet string }{
		{"10.20.0.4", "a"}, {"10.20.0.5", "a"}, {"10.20.1.5", "b"}, {"10.20.2.4", "c"},
	} {
		n.members = append(n.members, testMember{ns: fmt.Sprintf("m%d", i), PortBinding: PortBinding{
			Interface: fmt.Sprintf("port%d", i), MAC: fmt.Sprintf("02:00:00:00:00:%02x", i), Address: addr(m.address), Subnet: m.subnet,
		}})
	}
	n.resolvers = []netip.Addr{addr("10.20.0.2"), addr("10.20.1.2")}
	n.endpoints = []core.GoalEndpoint{
		{Name: "e1", Subnet: "b", Address: addr("10.20.1.9"), Port: 5432},
		{Name: "e2", Subnet: "b", Address: addr("10.20.1.9"), Port: 5433},
		{Name: "e3", Subnet: "c", Address: addr("10.20.2.9"), Port: 80},
	}
	n.build()
	return n
}

func (n *network) build() {
	n.t.Helper()
	n.namespace("vnet")
	n.sysctl("vnet", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
	for _, a := range []string{"10.20.0.1", "10.20.0.2", "10.20.1.2", "10.20.1.9", "10.20.2.9"} {
		n.ip("vnet", "address add "+a+"/32 dev lo")
	}
	for _, m := range n.members {
		n.attach(m.ns, m.Interface, m.MAC, m.Address)
	}
	// A route that should not be there: nobody holds the address.
	n.ip("vnet", "route add 10.20.0.77/32 dev port1", "neighbor replace 10.20.0.77 lladdr 02:00:00:00:00:01 dev port1 nud permanent")
	n.attach("nat", "nat0", "02:bb:00:00:00:01", addr("169.254.77.2"))
	n.ip("vnet", "route add default via 169.254.77.2 dev nat0 onlink")
}

// attach makes a namespace with one address, reached through an interface of the vnet.
func (n *network) attach(ns, iface, mac string, a netip.Addr) {
	n.t.Helper()
	n.namespace(ns)
	n.link(link{"vnet", iface, routerMAC}, link{ns, "eth0", mac})
	n.ip(ns, fmt.Sprintf("address add %s/32 dev eth0", a),
		"route add 169.254.77.1 dev eth0 scope link",
		"route add default via 169.254.77.1 dev eth0 onlink",
		fmt.Sprintf("neighbor replace 169.254.77.1 lladdr %s dev eth0 nud permanent", routerMAC))
	n.ip("vnet", fmt.Sprintf("route add %s/32 dev %s", a, iface),
		fmt.Sprintf("neighbor replace %s lladdr %s dev %s nud permanent", a, mac, iface))
	n.captures[ns] = n.capture(ns, "eth0")
	n.raw[ns] = n.rawSocket(ns)
}

// vnet is the description of the network, each subnet with the NSG of its name if there
// is one.
func (n *network) vnet(groups ...core.NetworkSecurityGroup) core.GoalVNet {
	v := core.GoalVNet{
		Name: "test", AddressSpace: []netip.Prefix{prefix("10.20.0.0/16")}, NSGs: groups, Endpoints: n.endpoints,
		NATGateways: []core.GoalNATGateway{{NATGateway: core.NATGateway{Name: "egress"}}},
		Subnets: []core.Subnet{
			{Name: "a", Prefix: prefix("10.20.0.0/24"), NATGateway: "egress"},
			{Name: "b", Prefix: prefix("10.20.1.0/24")},
			{Name: "c", Prefix: prefix("10.20.2.0/25"), NATGateway: "egress"},
		},
	}
	for i := range v.Subnets {
		for _, g := range groups {
			if g.Name == v.Subnets[i].Name {
				v.Subnets[i].NSG = g.Name
			}
		}
	}
	return v
}

func (n *network) input(v core.GoalVNet) VNetInput {
	in := VNetInput{VNet: v, Resolvers: n.resolvers, NATInterfaces: map[string]string{"egress": "nat0"}}
	for _, m := range n.members {
		in.Ports = append(in.Ports, m.PortBinding)
	}
	return in
}

func (n *network) apply(v core.GoalVNet) {
	n.t.Helper()
	in := n.input(v)
	if n.change != nil {
		n.change(&in)
	}
	text, err := CompileVNet(in)
	if err != nil {
		n.t.Fatal(err)
	}
	n.drops = map[string]bool{}
	for line := range strings.Lines(text) {
		if before, comment, ok := strings.Cut(line, ` drop comment "`); ok && strings.HasSuffix(before, "counter") {
			n.drops[strings.TrimSuffix(strings.TrimSpace(comment), `"`)] = true
		}
	}
	n.nft("vnet", text)
}

// member gives the member that holds an address.
func (n *network) member(a netip.Addr) (testMember, bool) {
	for _, m := range n.members {
		if m.Address == a {
			return m, true
		}
	}
	return testMember{}, false
}
