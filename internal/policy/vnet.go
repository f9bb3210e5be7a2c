package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// PortBinding is a member's veth: the interface in the virtual network's namespace, and
// what a packet that comes out of it must carry.
type PortBinding struct {
	Interface string
	MAC       string     // of the member's end
	Address   netip.Addr // leased
	Subnet    string
}

// VNetInput is what the ruleset of one virtual network is made of.
type VNetInput struct {
	VNet  core.GoalVNet
	Ports []PortBinding
	// Resolvers are the addresses in the namespace on which the resolver answers, UDP
	// and TCP port 53.
	Resolvers []netip.Addr
	// NATInterfaces names, for each NAT gateway, the interface in the namespace that
	// leads to it. A gateway that is absent is no way out yet.
	NATInterfaces map[string]string
	// UplinkInterfaces names, for each uplink of this host, its interface in the namespace.
	UplinkInterfaces map[string]string
	// PeerInterfaces names, for each connected network by its UID, the interface in the
	// namespace that leads to it.
	PeerInterfaces map[string]string
	// BucketsFrom is the number of rules of a direction past which they are compiled to
	// buckets by destination port. Default: 200; negative: always.
	BucketsFrom int
	// FlowMark is put on the flows that pass the NSGs, for the flow log to know by which
	// rules. Default: none is put.
	FlowMark uint32
}

// CompileVNet gives the nftables text that replaces `table inet sluice` in the
// namespace of a virtual network. The same input gives the same text, whatever the order
// of its lists. It fails only for an input that no network can have, with the object and
// the reason.
func CompileVNet(in VNetInput) (string, error) {
	if err := checkVNet(in); err != nil {
		return "", err
	}
	c := newVNetCompiler(in)
	if err := c.readGroups(); err != nil {
		return "", err
	}
	for _, write := range []func(){
		c.header, c.sets, c.nics, c.antiSpoof, c.forward, c.input, c.output, c.dns, c.questions, c.dispatch, c.groups,
	} {
		write()
	}
	c.out.WriteString("}\n")
	return c.out.String(), nil
}

type vnetCompiler struct {
	in     VNetInput
	ports  []PortBinding // by interface
	rules  ruleCompiler
	nsgs   []nftGroup        // by name
	chains map[string]string // an NSG's name → what its chains' names begin with
	out    strings.Builder
}

func newVNetCompiler(in VNetInput) *vnetCompiler {
	c := &vnetCompiler{in: in, ports: slices.Clone(in.Ports), chains: chainNames(in.VNet.NSGs)}
	slices.SortFunc(c.ports, func(a, b PortBinding) int { return strings.Compare(a.Interface, b.Interface) })
	var space, resolvers []span
	for _, p := range in.VNet.AddressSpace {
		space = append(space, prefixSpan(p))
	}
	for _, a := range in.Resolvers {
		resolvers = append(resolvers, span{number(a), number(a)})
	}
	space = append(space, uplinkSpans(in.VNet)...)
	space = append(space, peerSpans(in.VNet)...)
	c.rules.virtualNetwork = merge(space)
	c.rules.internet = complement(merge(append(space, notInternet()...)))
	c.rules.resolvers = merge(resolvers)
	c.rules.groups, c.rules.tags = groupSpans(in.VNet), tagSpans(in.VNet)
	c.rules.sets.byKey = map[string]string{}
	return c
}

// notInternet lists what is on nobody's Internet: loopback, link-local and multicast.
func notInternet() []span {
	var out []span
	for _, s := range []string{"127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4"} {
		out = append(out, prefixSpan(netip.MustParsePrefix(s)))
	}
	return out
}

// chainNames gives each NSG a name that nftables accepts and no other NSG has.
func chainNames(groups []core.NetworkSecurityGroup) map[string]string {
	names := make([]string, len(groups))
	for i, g := range groups {
		names[i] = g.Name
	}
	slices.Sort(names)
	out, taken := map[string]string{}, map[string]bool{}
	for _, name := range names {
		base := "nsg_" + shorten(identifier(name), 80)
		chain := base
		for i := 2; taken[chain]; i++ {
			chain = fmt.Sprintf("%s_%d", base, i)
		}
		out[name], taken[chain] = chain, true
	}
	return out
}

func identifier(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		}
		return '_'
	}, s)
}

// linef writes one indented line of the table's inside.
func (c *vnetCompiler) linef(indent int, format string, args ...any) {
	c.out.WriteString(strings.Repeat("\t", indent))
	fmt.Fprintf(&c.out, format, args...)
	c.out.WriteByte('\n')
}

func (c *vnetCompiler) header() {
	c.linef(0, "# Virtual network %s. The first two lines make the third a replacement in one step.", plain(c.in.VNet.Name))
	c.linef(0, "table inet sluice {}")
	c.linef(0, "delete table inet sluice")
	c.linef(0, "table inet sluice {")
}

func (c *vnetCompiler) sets() {
	var members, bindings, holders []string
	for _, p := range c.ports {
		members = append(members, fmt.Sprintf("%q", p.Interface))
		bindings = append(bindings, fmt.Sprintf("%q . %s . %s", p.Interface, canonicalMAC(p.MAC), p.Address))
		holders = append(holders, fmt.Sprintf("%q . %s", p.Interface, p.Address))
	}
	c.set("the interfaces of members", "members", "ifname", "", members)
	c.set("what each member must send from", "bindings", "ifname . ether_addr . ipv4_addr", "", bindings)
	c.set("where each leased address is", "holders", "ifname . ipv4_addr", "", holders)
	c.set("private endpoints", "endpoints", "ipv4_addr . inet_service", "", c.endpoints())
	c.flowsSet()
	c.set("tag PlatformDNS", "resolvers", "ipv4_addr", "interval", texts(c.rules.resolvers, span.addressText))
	c.set("tag VirtualNetwork", "virtual_network", "ipv4_addr", "interval", texts(c.rules.virtualNetwork, span.addressText))
	c.set("tag Internet", "internet", "ipv4_addr", "interval", texts(c.rules.internet, span.addressText))
	for _, s := range c.rules.sets.list {
		c.set(s.about, s.name, "ipv4_addr", s.flags(), s.elements())
	}
}

func (c *vnetCompiler) endpoints() []string {
	list := slices.Clone(c.in.VNet.Endpoints)
	slices.SortFunc(list, func(a, b core.GoalEndpoint) int {
		return netip.AddrPortFrom(a.Address, a.Port).Compare(netip.AddrPortFrom(b.Address, b.Port))
	})
	var out []string
	for _, e := range list {
		out = append(out, fmt.Sprintf("%s . %d", e.Address, e.Port))
	}
	return slices.Compact(out)
}

func (c *vnetCompiler) set(about, name, kind, flags string, elements []string) {
	c.collection("set", about, name, kind, flags, elements)
}

func (c *vnetCompiler) collection(what, about, name, kind, flags string, elements []string) {
	c.linef(1, "# %s", about)
	c.linef(1, "%s %s {", what, name)
	c.linef(2, "type %s", kind)
	if flags != "" {
		c.linef(2, "flags %s", flags)
	}
	if len(elements) > 0 {
		c.linef(2, "elements = {\n\t\t\t%s\n\t\t}", strings.Join(elements, ",\n\t\t\t"))
	}
	c.linef(1, "}\n")
}

// antiSpoof runs before connection tracking, so a forged packet leaves no trace.
func (c *vnetCompiler) antiSpoof() {
	c.linef(1, "chain prerouting {")
	c.linef(2, "type filter hook prerouting priority raw; policy drop;")
	c.linef(2, `meta nfproto ipv6 counter drop comment "IPv6 is not carried"`)
	c.linef(2, `icmp type redirect counter drop comment "redirects"`)
	c.markRouted()
	c.linef(2, `iifname . ether saddr . ip saddr @bindings counter accept comment "a member, from its own MAC and address"`)
	for _, name := range c.natNames() {
		c.linef(2, `iifname %q ip saddr != @virtual_network counter accept comment "%s"`,
			c.in.NATInterfaces[name], shorten("back from NAT gateway "+plain(name), maxComment))
	}
	c.fromUplinks()
	c.fromAppliances()
	c.fromPeers()
	c.linef(2, `counter drop comment "spoofed, or from an interface that has no place here"`)
	c.linef(1, "}\n")
}

// natNames lists, sorted, the NAT gateways of the network that have an interface.
func (c *vnetCompiler) natNames() []string {
	var out []string
	for _, g := range c.in.VNet.NATGateways {
		if c.in.NATInterfaces[g.Name] != "" {
			out = append(out, g.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// state begins a chain: what is known goes on, what is new must come from a member.
func (c *vnetCompiler) state() {
	c.linef(2, `ct state established,related counter accept comment "known flows"`)
	c.linef(2, `ct state invalid counter drop comment "invalid"`)
	c.linef(2, `%s counter drop comment "unsolicited: only members begin flows"`, c.beginners())
}

func (c *vnetCompiler) forward() {
	c.linef(1, "# From members to members and to NAT gateways.")
	c.linef(1, "chain forward {")
	c.linef(2, "type filter hook forward priority filter; policy drop;")
	c.state()
	c.linef(2, "jump security_groups")
	c.boundFlows()
	c.linef(2, `oifname . ip daddr @holders counter accept comment "to the member that holds the address"`)
	c.toPeers()
	c.toAppliances()
	c.toUplinks()
	for _, name := range c.natNames() {
		if from := c.natSubnets(name); len(from) > 0 {
			c.linef(2, `oifname %q ip saddr %s ip daddr @internet meta l4proto { tcp, udp, icmp } counter accept comment "%s"`,
				c.in.NATInterfaces[name], oneOf(from), shorten("out through NAT gateway "+plain(name), maxComment))
		}
	}
	c.linef(2, `counter drop comment "no route"`)
	c.linef(1, "}\n")
}

func (c *vnetCompiler) natSubnets(gateway string) []string {
	var spans []span
	for _, s := range c.in.VNet.Subnets {
		if s.NATGateway == gateway {
			spans = append(spans, prefixSpan(s.Prefix))
		}
	}
	return texts(merge(spans), span.addressText)
}

func (c *vnetCompiler) input() {
	c.linef(1, "# To private endpoints and the resolver, which listen in this namespace; nothing else does.")
	c.linef(1, "chain input {")
	c.linef(2, "type filter hook input priority filter; policy drop;")
	c.state()
	c.boundFlows()
	c.resolversAreOurs()
	c.linef(2, "ip daddr @resolvers meta l4proto { tcp, udp } th dport %d goto platform_dns", dnsPort)
	c.linef(2, "jump security_groups")
	c.linef(2, `ip daddr . tcp dport @endpoints counter accept comment "private endpoint"`)
	c.linef(2, `counter drop comment "nothing answers there"`)
	c.linef(1, "}\n")
}

func (c *vnetCompiler) output() {
	c.linef(1, "# This namespace only answers.")
	c.linef(1, "chain output {")
	c.linef(2, "type filter hook output priority filter; policy drop;")
	c.linef(2, `icmp type redirect counter drop comment "redirects"`)
	c.linef(2, "ct state established,related accept")
	c.resolverOut()
	c.linef(1, "}\n")
}
