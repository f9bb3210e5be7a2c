package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// ruleCompiler turns security rules into nftables rules.
type ruleCompiler struct {
	virtualNetwork []span
	internet       []span
	resolvers      []span
}

// ordered gives the rules of one direction as they are evaluated, the default ones last.
func ordered(n core.NetworkSecurityGroup, d core.Direction) []core.SecurityRule {
	var out []core.SecurityRule
	for _, r := range n.Rules {
		if r.Direction == d {
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b core.SecurityRule) int { return cmp.Compare(a.Priority, b.Priority) })
	return append(out, DefaultRules(d)...)
}

// namesDNS reports whether the rule is asked about questions to the resolver.
func namesDNS(r core.SecurityRule) bool { return slices.Contains(r.Destination, TagPlatformDNS) }

// line compiles one rule to one line. A rule that cannot match becomes a comment, so that
// the text still shows it.
func (c ruleCompiler) line(nsg string, r core.SecurityRule) (string, error) {
	match, possible, err := c.match(r)
	if err != nil {
		return "", invalidRule(nsg, r, err)
	}
	label := label(nsg, r)
	if !possible {
		return "# " + label + ": matches nothing here", nil
	}
	verdict := "drop"
	if r.Access == core.Allow {
		verdict = "return"
	}
	return strings.TrimSpace(match+" counter "+verdict) + ` comment "` + label + `"`, nil
}

func invalid(field, format string, args ...any) *errs.Error {
	return errs.New(errs.Invalid, format, args...).On("", field)
}

// match gives the conditions of a rule, and false if nothing can meet them.
func (c ruleCompiler) match(r core.SecurityRule) (string, bool, *errs.Error) {
	source, err := c.addresses(r.Source)
	if err != nil {
		return "", false, err.On("", "source")
	}
	destination, err := c.addresses(r.Destination)
	if err != nil {
		return "", false, err.On("", "destination")
	}
	transport, possible, err := protocolMatch(r)
	if err != nil {
		return "", false, err
	}
	if len(source) == 0 || len(destination) == 0 || !possible {
		return "", false, nil
	}
	parts := []string{c.addressMatch("saddr", source), c.addressMatch("daddr", destination), transport}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " "), true, nil
}

// addressMatch writes the condition on one address; a tag alone refers to its named set.
func (c ruleCompiler) addressMatch(field string, spans []span) string {
	switch {
	case slices.Equal(spans, []span{everything}):
		return ""
	case slices.Equal(spans, c.virtualNetwork):
		return "ip " + field + " @virtual_network"
	case slices.Equal(spans, c.internet):
		return "ip " + field + " @internet"
	}
	return "ip " + field + " " + oneOf(texts(spans, span.addressText))
}

func (c ruleCompiler) addresses(entries []string) ([]span, *errs.Error) {
	if len(entries) == 0 {
		return []span{everything}, nil
	}
	var all []span
	for _, entry := range entries {
		spans, err := c.addressEntry(entry)
		if err != nil {
			return nil, err
		}
		all = append(all, spans...)
	}
	return merge(all), nil
}

func (c ruleCompiler) addressEntry(entry string) ([]span, *errs.Error) {
	switch entry {
	case anyAddress:
		return []span{everything}, nil
	case TagVirtualNetwork:
		return c.virtualNetwork, nil
	case TagInternet:
		return c.internet, nil
	case TagPlatformDNS:
		return c.resolvers, nil
	case TagLoadBalancer, TagPlatformTunnel:
		return nil, nil
	}
	p, err := parsePrefix(entry)
	if err != nil {
		return nil, invalid("", "%q is neither an address, a prefix nor a service tag", entry)
	}
	if !p.Addr().Is4() {
		return nil, nil
	}
	return []span{prefixSpan(p)}, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		return netip.ParsePrefix(s)
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	return a.Prefix(a.BitLen())
}

// protocolMatch writes the condition on protocol and ports, and false if ports are named
// for a protocol that has none.
func protocolMatch(r core.SecurityRule) (string, bool, *errs.Error) {
	from, err := ports("sourcePorts", r.SourcePorts)
	if err != nil {
		return "", false, err
	}
	to, err := ports("destinationPorts", r.DestinationPorts)
	if err != nil {
		return "", false, err
	}
	named := from != nil || to != nil
	switch r.Protocol {
	case core.ProtocolTCP, core.ProtocolUDP:
		p := strings.ToLower(string(r.Protocol))
		if !named {
			return "meta l4proto " + p, true, nil
		}
		return portMatch(p, from, to), true, nil
	case core.ProtocolAny:
		if !named {
			return "", true, nil
		}
		return "meta l4proto { tcp, udp } " + portMatch("th", from, to), true, nil
	case core.ProtocolICMP, core.ProtocolESP, core.ProtocolAH:
		return "meta l4proto " + strings.ToLower(string(r.Protocol)), !named, nil
	}
	return "", false, invalid("protocol", "%q is not a protocol of a rule", r.Protocol)
}

func portMatch(header string, from, to []span) string {
	var parts []string
	if from != nil {
		parts = append(parts, header+" sport "+oneOf(texts(from, span.portText)))
	}
	if to != nil {
		parts = append(parts, header+" dport "+oneOf(texts(to, span.portText)))
	}
	return strings.Join(parts, " ")
}

// ports parses a list of ports; nil means every port.
func ports(field string, entries []string) ([]span, *errs.Error) {
	if len(entries) == 0 || slices.Contains(entries, anyPort) {
		return nil, nil
	}
	var all []span
	for _, entry := range entries {
		s, ok := parsePorts(entry)
		if !ok {
			return nil, invalid(field, "%q is neither a port nor a range of ports", entry)
		}
		all = append(all, s)
	}
	return merge(all), nil
}

func parsePorts(entry string) (span, bool) {
	from, to, isRange := strings.Cut(entry, "-")
	lo, err := strconv.ParseUint(from, 10, 16)
	if err != nil {
		return span{}, false
	}
	hi := lo
	if isRange {
		if hi, err = strconv.ParseUint(to, 10, 16); err != nil || hi < lo {
			return span{}, false
		}
	}
	return span{uint32(lo), uint32(hi)}, true
}

// maxComment is what nftables keeps of a comment, in bytes.
const maxComment = 128 - 1

// label names a rule in the ruleset: "data/deny-all (4096) inbound".
func label(nsg string, r core.SecurityRule) string {
	tail := fmt.Sprintf(" (%d) %s", r.Priority, strings.ToLower(string(r.Direction)))
	return shorten(plain(nsg)+"/"+plain(r.Name), maxComment-len(tail)) + tail
}

// shorten cuts a text at a character's boundary so that it has at most n bytes.
func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	const mark = "..."
	cut := n - len(mark)
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + mark
}

// plain replaces whatever could end a comment or a quoted text: names come from users.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '"' || r == '\\' || r == utf8.RuneError {
			return '_'
		}
		return r
	}, s)
}
