package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

const (
	suffixQuestions = "questions"
	questionsChain  = "resolver_questions"
)

// asksDNS reports whether the rule is asked about the resolver's own questions.
func asksDNS(r core.SecurityRule) bool { return slices.Contains(r.Source, TagPlatformDNS) }

// dnsServers are those that the resolver asks through the network, as nftables writes
// address and port.
func (c *vnetCompiler) dnsServers() []string {
	var out []string
	for _, s := range c.in.VNet.DNS.Servers {
		if a, err := netip.ParseAddrPort(s); err == nil && a.Addr().Is4() {
			out = append(out, fmt.Sprintf("%s . %d", a.Addr(), a.Port()))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// resolverOut lets the resolver's questions to the network's DNS servers out.
func (c *vnetCompiler) resolverOut() {
	servers := c.dnsServers()
	if len(servers) == 0 {
		return
	}
	for _, protocol := range []string{"udp", "tcp"} {
		c.linef(2, "ip saddr @resolvers ip daddr . %s dport { %s } goto %s", protocol, strings.Join(servers, ", "), questionsChain)
	}
}

// questions writes the chains that those questions pass: they are the platform's and
// exempt, unless a rule of their subnet names PlatformDNS as its source.
func (c *vnetCompiler) questions() {
	if len(c.dnsServers()) == 0 {
		return
	}
	c.linef(1, "# The resolver's own questions: exempt, unless a rule names PlatformDNS as its source.")
	c.linef(1, "chain %s {", questionsChain)
	list := slices.Clone(c.in.VNet.Subnets)
	slices.SortFunc(list, func(a, b core.Subnet) int { return a.Prefix.Masked().Addr().Compare(b.Prefix.Masked().Addr()) })
	for _, s := range list {
		for _, g := range c.nsgs {
			if g.name == s.NSG && len(g.questions) > 0 {
				c.linef(2, "ip saddr %s jump %s_%s", s.Prefix.Masked(), g.chain, suffixQuestions)
			}
		}
	}
	c.linef(2, `counter accept comment "question of the resolver"`)
	c.linef(1, "}\n")
	for _, g := range c.nsgs {
		if len(g.questions) > 0 {
			c.linear(g.chain+"_"+suffixQuestions, g.questions)
		}
	}
}
