package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// nftGroup is an NSG as nftables has it: rules by priority, the default ones last.
type nftGroup struct {
	name, chain       string
	outbound, inbound []nftRule
	dns               []nftRule // the outbound rules that name PlatformDNS
	questions         []nftRule // those that name it as their source
}

// The chains of an NSG, by what their names end with.
const (
	suffixOutbound = "outbound"
	suffixInbound  = "inbound"
	suffixDNS      = "dns"
)

// readGroups compiles the rules of every NSG, which also finds the sets that they need.
func (c *vnetCompiler) readGroups() error {
	list := slices.Clone(c.in.VNet.NSGs)
	slices.SortFunc(list, func(a, b core.NetworkSecurityGroup) int { return cmp.Compare(a.Name, b.Name) })
	logs := LogsFlows(c.in.VNet)
	for _, n := range list {
		g := nftGroup{name: n.Name, chain: c.chains[n.Name]}
		for _, r := range ordered(n, core.Outbound) {
			compiled, err := c.rules.compile(n.Name, r)
			if err != nil {
				return err
			}
			compiled = compiled.logged(logs, n, r)
			g.outbound = append(g.outbound, compiled)
			if namesDNS(r) {
				g.dns = append(g.dns, compiled)
			}
			if asksDNS(r) {
				g.questions = append(g.questions, compiled)
			}
		}
		for _, r := range ordered(n, core.Inbound) {
			compiled, err := c.rules.compile(n.Name, r)
			if err != nil {
				return err
			}
			g.inbound = append(g.inbound, compiled.logged(logs, n, r))
		}
		c.nsgs = append(c.nsgs, g)
	}
	return nil
}

// nics writes which members' interfaces have an NSG of their own.
func (c *vnetCompiler) nics() {
	chains := map[string]nftGroup{}
	for _, g := range c.nsgs {
		chains[g.name] = g
	}
	list := slices.Clone(c.in.VNet.NICs)
	slices.SortFunc(list, func(a, b core.GoalNIC) int { return a.Address.Compare(b.Address) })
	for _, suffix := range []string{suffixOutbound, suffixInbound, suffixDNS} {
		var elements []string
		for _, n := range list {
			if g := chains[n.NSG]; suffix != suffixDNS || len(g.dns) > 0 {
				elements = append(elements, fmt.Sprintf("%s : jump %s_%s", n.Address, g.chain, suffix))
			}
		}
		c.collection("map", "NSGs of members' own, "+suffix, "nic_"+suffix, "ipv4_addr : verdict", "", elements)
	}
}

// dns writes the chain for questions to the resolver: only rules that name it are asked.
func (c *vnetCompiler) dns() {
	c.linef(1, "# Questions to the resolver: exempt, unless a rule names PlatformDNS.")
	c.linef(1, "chain platform_dns {")
	c.mark()
	c.linef(2, "ip saddr vmap @nic_dns")
	c.subnets("saddr", suffixDNS)
	c.linef(2, `counter accept comment "question to the resolver"`)
	c.linef(1, "}\n")
}

// dispatch writes the chain that both hooks pass: a group's chain returns to it to allow.
func (c *vnetCompiler) dispatch() {
	c.linef(1, "# The source's own rules and its subnet's, then the destination's subnet's and its own; to return is to allow.")
	c.linef(1, "chain security_groups {")
	c.mark()
	c.linef(2, "ip saddr vmap @nic_outbound")
	c.subnets("saddr", suffixOutbound)
	c.subnets("daddr", suffixInbound)
	c.linef(2, "ip daddr vmap @nic_inbound")
	c.linef(1, "}\n")
}

// subnets sends each subnet's packets to the chain of its group, where the group has one.
func (c *vnetCompiler) subnets(field, suffix string) {
	list := slices.Clone(c.in.VNet.Subnets)
	slices.SortFunc(list, func(a, b core.Subnet) int { return a.Prefix.Masked().Addr().Compare(b.Prefix.Masked().Addr()) })
	var elements []string
	for _, s := range list {
		for _, g := range c.nsgs {
			if g.name == s.NSG && (suffix != suffixDNS || len(g.dns) > 0) {
				elements = append(elements, fmt.Sprintf("%s : jump %s_%s", s.Prefix.Masked(), g.chain, suffix))
			}
		}
	}
	if len(elements) > 0 {
		c.linef(2, "ip %s vmap { %s }", field, strings.Join(elements, ", "))
	}
}

func (c *vnetCompiler) groups() {
	for _, g := range c.nsgs {
		if len(g.dns) > 0 {
			c.linear(g.chain+"_"+suffixDNS, g.dns)
		}
		c.rulesOf(g.chain+"_"+suffixOutbound, g.outbound)
		c.rulesOf(g.chain+"_"+suffixInbound, g.inbound)
	}
}

// linear writes the rules one after the other.
func (c *vnetCompiler) linear(chain string, rules []nftRule) {
	lines := make([]string, len(rules))
	for i, r := range rules {
		lines[i] = r.line()
	}
	c.chain(chain, lines)
}

func (c *vnetCompiler) chain(name string, lines []string) {
	c.linef(1, "chain %s {", name)
	for _, l := range lines {
		c.linef(2, "%s", l)
	}
	c.linef(1, "}\n")
}
