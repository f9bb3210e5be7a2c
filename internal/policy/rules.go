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
	groups         map[string][]span // application security groups, by name
	tags           map[string][]span // service tags, by name
	sets           addressSets
}

// nftRule is a security rule as nftables has it: the conditions, each empty if it always
// holds, and what it does.
type nftRule struct {
	label       string
	verdict     string
	source      string // "ip saddr …"
	destination string
	protocol    core.Protocol
	from, to    []span // ports; nil: every port
	impossible  bool   // nothing can match it
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

// line writes a rule as one line. A rule that cannot match becomes a comment, so that the
// text still shows it.
func (r nftRule) line() string {
	if r.impossible {
		return "# " + r.label + ": matches nothing here"
	}
	return r.text(r.transport())
}

// text writes the rule with its condition on protocol and ports given.
func (r nftRule) text(transport string) string {
	var parts []string
	for _, p := range []string{r.source, r.destination, transport} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(append(parts, "counter "+r.verdict+` comment "`+r.label+`"`), " ")
}

// transport writes the condition on protocol and ports.
func (r nftRule) transport() string {
	named := r.from != nil || r.to != nil
	switch {
	case r.protocol == core.ProtocolAny && !named:
		return ""
	case r.protocol == core.ProtocolAny:
		return "meta l4proto { tcp, udp } " + portMatch("th", r.from, r.to)
	case !named:
		return "meta l4proto " + keyword(r.protocol)
	}
	return portMatch(keyword(r.protocol), r.from, r.to)
}

func keyword(p core.Protocol) string { return strings.ToLower(string(p)) }

// compile reads one security rule.
func (c *ruleCompiler) compile(nsg string, r core.SecurityRule) (nftRule, error) {
	out := nftRule{label: label(nsg, r), verdict: "drop", protocol: r.Protocol}
	if r.Access == core.Allow {
		out.verdict = "return"
	}
	if err := c.match(&out, r); err != nil {
		return nftRule{}, invalidRule(nsg, r, err)
	}
	return out, nil
}

func invalid(field, format string, args ...any) *errs.Error {
	return errs.New(errs.Invalid, format, args...).On("", field)
}

// match reads the conditions of a rule.
func (c *ruleCompiler) match(out *nftRule, r core.SecurityRule) (err *errs.Error) {
	if err = protocolMatch(out, r); err != nil {
		return err
	}
	source, err := c.addresses(r.Source)
	if err != nil {
		return err.On("", "source")
	}
	destination, err := c.addresses(r.Destination)
	if err != nil {
		return err.On("", "destination")
	}
	if out.impossible = out.impossible || source.empty() || destination.empty(); !out.impossible {
		out.source, out.destination = c.addressMatch("saddr", source), c.addressMatch("daddr", destination)
	}
	return nil
}

// addresses is what one side of a rule names.
type addresses struct {
	spans []span
	names []string // of groups and tags among them, sorted
	alone bool     // nothing stands beside the one name
}

// empty reports whether no address can ever be among them. Groups fill and drain.
func (a addresses) empty() bool { return len(a.spans) == 0 && len(a.names) == 0 }

// addressMatch writes the condition on one address; what has a name refers to its set.
func (c *ruleCompiler) addressMatch(field string, a addresses) string {
	switch {
	case slices.Equal(a.spans, []span{everything}):
		return ""
	case len(a.names) > 0 || len(a.spans) > maxInline:
		return "ip " + field + " @" + c.set(a)
	case slices.Equal(a.spans, c.virtualNetwork):
		return "ip " + field + " @virtual_network"
	case slices.Equal(a.spans, c.internet):
		return "ip " + field + " @internet"
	}
	return "ip " + field + " " + oneOf(texts(a.spans, span.addressText))
}

func (c *ruleCompiler) addresses(entries []string) (addresses, *errs.Error) {
	if len(entries) == 0 || slices.Contains(entries, anyAddress) {
		return addresses{spans: []span{everything}}, nil
	}
	var out addresses
	others := 0
	for _, entry := range entries {
		spans, named, err := c.addressEntry(entry)
		if err != nil {
			return out, err
		}
		if named {
			out.names = append(out.names, entry)
		} else {
			others++
		}
		out.spans = append(out.spans, spans...)
	}
	out.spans = merge(out.spans)
	slices.Sort(out.names)
	out.names = slices.Compact(out.names)
	out.alone = others == 0 && len(out.names) == 1
	return out, nil
}

// addressEntry reads one entry, and says whether it is the name of a group or tag.
func (c *ruleCompiler) addressEntry(entry string) (spans []span, named bool, err *errs.Error) {
	switch entry {
	case TagVirtualNetwork:
		return c.virtualNetwork, false, nil
	case TagInternet:
		return c.internet, false, nil
	case TagPlatformDNS:
		return c.resolvers, false, nil
	case TagLoadBalancer, TagPlatformTunnel:
		return nil, false, nil
	}
	if spans, ok := c.groups[entry]; ok {
		return spans, true, nil
	}
	if spans, ok := c.tags[entry]; ok {
		return spans, true, nil
	}
	p, parseErr := parsePrefix(entry)
	if parseErr != nil {
		return nil, false, invalid("", "%q is neither an address, a prefix, a service tag nor an application security group", entry)
	}
	if !p.Addr().Is4() {
		return nil, false, nil
	}
	return []span{prefixSpan(p)}, false, nil
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

// protocolMatch reads the conditions on protocol and ports. Ports that are named for a
// protocol that has none match nothing.
func protocolMatch(out *nftRule, r core.SecurityRule) (err *errs.Error) {
	if out.from, err = ports("sourcePorts", r.SourcePorts); err != nil {
		return err
	}
	if out.to, err = ports("destinationPorts", r.DestinationPorts); err != nil {
		return err
	}
	switch r.Protocol {
	case core.ProtocolTCP, core.ProtocolUDP, core.ProtocolAny:
		return nil
	case core.ProtocolICMP, core.ProtocolESP, core.ProtocolAH:
		out.impossible = out.from != nil || out.to != nil
		return nil
	}
	return invalid("protocol", "%q is not a protocol of a rule", r.Protocol)
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
