package policy

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// group is an NSG as the evaluator reads it: each direction by ascending priority, the
// default rules last.
type group struct{ inbound, outbound []*rule }

// rule is one security rule. What can match nothing, such as an IPv6 prefix, stays
// without effect.
type rule struct {
	name             string
	priority         int
	access           core.Access
	protocol         core.Protocol
	names            []string // the destinations as they are written
	source           matcher
	destination      matcher
	sourcePorts      *portList // nil: every port, and protocols without ports
	destinationPorts *portList
	isDefault        bool
}

type portList struct{ ranges [][2]uint16 }

func (e *Evaluator) read(n core.NetworkSecurityGroup) *group {
	var g group
	for _, r := range n.Rules {
		list := &g.inbound
		if r.Direction == core.Outbound {
			list = &g.outbound
		}
		*list = append(*list, e.rule(r))
	}
	byPriority := func(a, b *rule) int { return a.priority - b.priority }
	slices.SortStableFunc(g.inbound, byPriority)
	slices.SortStableFunc(g.outbound, byPriority)
	for _, r := range DefaultRules(core.Inbound) {
		g.inbound = append(g.inbound, e.defaultRule(r))
	}
	for _, r := range DefaultRules(core.Outbound) {
		g.outbound = append(g.outbound, e.defaultRule(r))
	}
	return &g
}

func (e *Evaluator) defaultRule(r core.SecurityRule) *rule {
	out := e.rule(r)
	out.isDefault = true
	return out
}

func (e *Evaluator) rule(r core.SecurityRule) *rule {
	return &rule{
		name: r.Name, priority: r.Priority, access: r.Access, protocol: r.Protocol, names: r.Destination,
		source: e.matcher(r.Source), destination: e.matcher(r.Destination),
		sourcePorts: readPorts(r.SourcePorts), destinationPorts: readPorts(r.DestinationPorts),
	}
}

// matcher says whether an address is one of those that a rule names.
type matcher struct {
	any       bool
	addresses map[netip.Addr]bool
	prefixes  []netip.Prefix
	tests     []func(netip.Addr) bool // tags
}

func (m matcher) has(a netip.Addr) bool {
	return m.any || m.addresses[a] ||
		slices.ContainsFunc(m.prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) ||
		slices.ContainsFunc(m.tests, func(in func(netip.Addr) bool) bool { return in(a) })
}

func (e *Evaluator) matcher(entries []string) matcher {
	m := matcher{any: len(entries) == 0, addresses: map[netip.Addr]bool{}}
	for _, entry := range entries {
		switch entry {
		case anyAddress:
			m.any = true
		case TagVirtualNetwork:
			m.tests = append(m.tests, e.inVirtualNetwork)
			m.tests = append(m.tests, e.inPeers)
		case TagInternet:
			m.tests = append(m.tests, func(a netip.Addr) bool { return !e.inVirtualNetwork(a) && !e.inPeers(a) && unroutable(a) == "" })
		case TagPlatformDNS:
			m.tests = append(m.tests, func(a netip.Addr) bool { return slices.Contains(e.resolvers, a) })
		case TagLoadBalancer, TagPlatformTunnel:
		default:
			e.named(&m, entry)
		}
	}
	return m
}

// named adds what an administrator's own names, prefixes and addresses stand for.
func (e *Evaluator) named(m *matcher, entry string) {
	for _, g := range e.vnet.ASGs {
		if g.Name == entry {
			for _, a := range g.Addresses {
				m.addresses[a] = true
			}
			return
		}
	}
	for _, t := range e.vnet.ServiceTags {
		if t.Name == entry {
			m.prefixes = append(m.prefixes, t.Prefixes...)
			return
		}
	}
	if p, err := netip.ParsePrefix(entry); err == nil {
		m.prefixes = append(m.prefixes, p)
	} else if a, err := netip.ParseAddr(entry); err == nil {
		m.addresses[a] = true
	}
}

func readPorts(entries []string) *portList {
	if len(entries) == 0 || slices.Contains(entries, anyPort) {
		return nil
	}
	out := &portList{}
	for _, entry := range entries {
		from, to, isRange := strings.Cut(entry, "-")
		if !isRange {
			to = from
		}
		lo, err1 := strconv.ParseUint(from, 10, 16)
		hi, err2 := strconv.ParseUint(to, 10, 16)
		if err1 == nil && err2 == nil {
			out.ranges = append(out.ranges, [2]uint16{uint16(lo), uint16(hi)})
		}
	}
	return out
}
