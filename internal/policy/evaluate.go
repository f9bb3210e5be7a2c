package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// Evaluate says what the virtual network's rules and routes do with the flow.
// Resolvers are the addresses on which its resolver answers. Whether someone holds the
// destination address is not known here: an address of a subnet that is neither reserved
// nor an endpoint's counts as a member's.
func Evaluate(v core.GoalVNet, resolvers []netip.Addr, f Flow) Verdict {
	e := evaluator{vnet: v, resolvers: resolvers, flow: f}
	from, ok := e.subnetOf(f.Source)
	if !ok {
		return Verdict{Route: fmt.Sprintf("%sthe source %s is in no subnet of virtual network %s", routeNone, f.Source, v.Name)}
	}
	var verdict Verdict
	if e.isDNS() {
		verdict.Route = "VnetLocal"
		e.decide(&verdict, from, core.Outbound)
	} else {
		verdict.Route = e.route(from)
		e.decide(&verdict, from, core.Outbound)
		if to, inside := e.subnetOf(f.Destination); inside && !denied(verdict) {
			e.decide(&verdict, to, core.Inbound)
		}
	}
	verdict.Allowed = !denied(verdict) && verdict.HasRoute()
	return verdict
}

func denied(v Verdict) bool {
	_, is := v.Denial()
	return is
}

type evaluator struct {
	vnet      core.GoalVNet
	resolvers []netip.Addr
	flow      Flow
}

// isDNS reports whether the flow is a question to the resolver.
func (e evaluator) isDNS() bool {
	return slices.Contains(e.resolvers, e.flow.Destination) && e.flow.DestinationPort == dnsPort && e.hasPorts()
}

func (e evaluator) hasPorts() bool {
	return e.flow.Protocol == core.ProtocolTCP || e.flow.Protocol == core.ProtocolUDP
}

func (e evaluator) subnetOf(a netip.Addr) (core.Subnet, bool) {
	for _, s := range e.vnet.Subnets {
		if s.Prefix.Contains(a) {
			return s, true
		}
	}
	return core.Subnet{}, false
}

// decide appends what the subnet's NSG says in one direction, if it has one that does.
func (e evaluator) decide(v *Verdict, s core.Subnet, d core.Direction) {
	if s.NSG == "" {
		return
	}
	i := slices.IndexFunc(e.vnet.NSGs, func(n core.NetworkSecurityGroup) bool { return n.Name == s.NSG })
	if i < 0 {
		v.Route = fmt.Sprintf("%snetwork security group %s of subnet %s is not known", routeNone, s.NSG, s.Name)
		return
	}
	rule, ok := e.firstMatch(e.vnet.NSGs[i], d)
	if !ok {
		return
	}
	v.Decisions = append(v.Decisions, Decision{
		NSG: s.NSG, Rule: rule.Name, Priority: rule.Priority, Direction: d, Subnet: s.Name, Access: rule.Access,
	})
}

// firstMatch finds the deciding rule. Only a question to the resolver can meet none.
func (e evaluator) firstMatch(n core.NetworkSecurityGroup, d core.Direction) (core.SecurityRule, bool) {
	var best *core.SecurityRule
	consider := func(rules []core.SecurityRule) {
		for i := range rules {
			r := &rules[i]
			if r.Direction == d && (best == nil || r.Priority < best.Priority) && e.matches(*r) {
				best = r
			}
		}
	}
	consider(n.Rules)
	if best == nil && !e.isDNS() {
		consider(DefaultRules(d))
	}
	if best == nil {
		return core.SecurityRule{}, false
	}
	return *best, true
}

func (e evaluator) matches(r core.SecurityRule) bool {
	if e.isDNS() && !slices.Contains(r.Destination, TagPlatformDNS) {
		return false
	}
	if r.Protocol != core.ProtocolAny && r.Protocol != e.flow.Protocol {
		return false
	}
	return e.addressMatches(r.Source, e.flow.Source) && e.addressMatches(r.Destination, e.flow.Destination) &&
		e.portMatches(r.SourcePorts, e.flow.SourcePort) && e.portMatches(r.DestinationPorts, e.flow.DestinationPort)
}

func (e evaluator) addressMatches(entries []string, a netip.Addr) bool {
	if len(entries) == 0 {
		return true
	}
	return slices.ContainsFunc(entries, func(s string) bool { return e.entryMatches(s, a) })
}

func (e evaluator) entryMatches(entry string, a netip.Addr) bool {
	switch entry {
	case anyAddress:
		return true
	case TagVirtualNetwork:
		return e.inSpace(a)
	case TagInternet:
		return !e.inSpace(a) && unroutable(a) == ""
	case TagPlatformDNS:
		return slices.Contains(e.resolvers, a)
	case TagLoadBalancer, TagPlatformTunnel:
		return false
	}
	if p, err := netip.ParsePrefix(entry); err == nil {
		return p.Contains(a)
	}
	one, err := netip.ParseAddr(entry)
	return err == nil && one == a
}

func (e evaluator) inSpace(a netip.Addr) bool {
	return slices.ContainsFunc(e.vnet.AddressSpace, func(p netip.Prefix) bool { return p.Contains(a) })
}

// unroutable says what kind of address a is if nothing may be sent to it outside the
// virtual network, and "" if it is an ordinary one.
func unroutable(a netip.Addr) string {
	switch {
	case a.IsLoopback():
		return "a loopback"
	case a.IsLinkLocalUnicast():
		return "a link-local"
	case a.IsMulticast():
		return "a multicast"
	}
	return ""
}

func (e evaluator) portMatches(entries []string, port uint16) bool {
	if len(entries) == 0 || slices.Contains(entries, anyPort) {
		return true
	}
	return e.hasPorts() && slices.ContainsFunc(entries, func(s string) bool { return portIn(s, port) })
}

func portIn(entry string, port uint16) bool {
	from, to, isRange := strings.Cut(entry, "-")
	if !isRange {
		to = from
	}
	lo, err1 := strconv.ParseUint(from, 10, 16)
	hi, err2 := strconv.ParseUint(to, 10, 16)
	return err1 == nil && err2 == nil && uint64(port) >= lo && uint64(port) <= hi
}
