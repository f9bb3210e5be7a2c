package validate

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

const (
	maxNSGs          = 5000
	maxRules         = 1000
	maxRuleAddresses = 4000 // each for source and destination
	minPriority      = 100
	maxPriority      = 4096
)

const anyWord = "Any"

// tags lists the service tags that a rule may name.
func tags() []string {
	return []string{"VirtualNetwork", "Internet", "LoadBalancer", "PlatformDNS", "PlatformTunnel"}
}

func (c *checker) nsg(n *core.NetworkSecurityGroup) {
	c.label("name", n.Name)
	c.flowLog("flowLog", n.FlowLog)
	if len(n.Rules) > maxRules {
		c.bad("rules", "has %d rules, at most %d are possible", len(n.Rules), maxRules)
		return
	}
	names := map[string]int{}
	priorities := map[core.Direction]map[int]string{core.Inbound: {}, core.Outbound: {}}
	for i, r := range n.Rules {
		field := at("rules", i)
		if first, twice := names[r.Name]; twice && r.Name != "" {
			c.bad(field+".name", "rules[%d] is named %q too", first, r.Name)
		} else {
			names[r.Name] = i
		}
		if of := priorities[r.Direction]; of != nil {
			if other, twice := of[r.Priority]; twice {
				c.bad(field+".priority", "rule %q has the priority %d too; a priority is unique per direction", other, r.Priority)
			} else {
				of[r.Priority] = r.Name
			}
		}
		c.rule(field, r)
	}
}

func (c *checker) rule(field string, r core.SecurityRule) {
	c.ruleName(field+".name", r.Name)
	if r.Priority < minPriority || r.Priority > maxPriority {
		c.bad(field+".priority", "%d is not a priority: a number from %d to %d", r.Priority, minPriority, maxPriority)
	}
	oneOf(c, field+".direction", r.Direction, core.Inbound, core.Outbound)
	oneOf(c, field+".access", r.Access, core.Allow, core.Deny)
	oneOf(c, field+".protocol", r.Protocol, core.ProtocolTCP, core.ProtocolUDP, core.ProtocolICMP,
		core.ProtocolESP, core.ProtocolAH, core.ProtocolAny)
	c.ruleAddresses(field+".source", r.Source)
	c.ruleAddresses(field+".destination", r.Destination)
	c.rulePorts(field+".sourcePorts", r.Protocol, r.SourcePorts)
	c.rulePorts(field+".destinationPorts", r.Protocol, r.DestinationPorts)
}

func (c *checker) ruleAddresses(field string, list []string) {
	if len(list) > maxRuleAddresses {
		c.bad(field, "has %d addresses, at most %d are possible", len(list), maxRuleAddresses)
		return
	}
	for i, a := range list {
		switch {
		case a == anyWord && len(list) > 1:
			c.bad(at(field, i), "Any stands for every address: nothing can stand beside it")
		case a != anyWord && !slices.Contains(tags(), a) && !c.namesAddresses(a):
			c.ruleAddress(at(field, i), a)
		}
	}
}

// ruleAddress is for what is neither Any, a tag nor an application security group.
func (c *checker) ruleAddress(field, a string) {
	if strings.Contains(a, "/") {
		if p, err := netip.ParsePrefix(a); err == nil {
			c.prefix(field, p)
			return
		}
	} else if addr, err := netip.ParseAddr(a); err == nil {
		if !addr.Is4() {
			c.bad(field, "%s is not IPv4: virtual networks are IPv4 only", a)
		}
		return
	}
	e := c.bad(field, "%q is no address, prefix or tag: Any, 10.0.0.4, 10.0.0.0/24, %s; nor is there an ApplicationSecurityGroup or ServiceTag of this name",
		a, strings.Join(tags(), ", "))
	for _, tag := range slices.Concat(tags(), []string{anyWord}, names(c.byName[core.KindApplicationSecurityGroup]), names(c.byName[core.KindServiceTag])) {
		if strings.EqualFold(tag, a) || (a == "*" && tag == anyWord) {
			e.WithHint("write %s", tag)
		}
	}
}

func (c *checker) rulePorts(field string, protocol core.Protocol, ports []string) {
	for i, p := range ports {
		if p == "*" {
			continue
		}
		if !portRange(p) {
			c.bad(at(field, i), "%q is no port: *, 5432 or 8000-8999, within 0 to 65535", p)
		}
		switch protocol {
		case core.ProtocolICMP, core.ProtocolESP, core.ProtocolAH:
			c.bad(at(field, i), "%s has no ports", protocol)
		}
	}
}

// portRange reports whether text is a port, or two with a hyphen between in order.
func portRange(text string) bool {
	lo, hi, isRange := strings.Cut(text, "-")
	first, ok := port(lo)
	if !isRange {
		return ok
	}
	last, okLast := port(hi)
	return ok && okLast && first <= last
}

func port(text string) (uint64, bool) {
	n, err := strconv.ParseUint(text, 10, 16)
	return n, err == nil && text[0] != '+'
}
