package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// NATInput is what the ruleset of one NAT gateway is made of.
type NATInput struct {
	// Inside and Outside are the interfaces in the NAT gateway's namespace: towards the
	// virtual network, and away from it.
	Inside, Outside string
	// SNAT lists the addresses to translate to. Empty: the address of Outside.
	SNAT []netip.Addr
	// InsidePrefixes are what may come in at Inside, and nothing else.
	InsidePrefixes []netip.Prefix
	// MemberFlows bounds the flows that one member may have here. Default MaxMemberFlows.
	// The virtual network's own bound does not hold here: it forgets UDP flows sooner.
	MemberFlows int
}

// The ports that a translated flow may leave from: NATPorts of each address, for TCP
// and for UDP.
const (
	natPorts = "1024-65535"
	NATPorts = 65535 - 1024 + 1
)

// CompileNAT gives the nftables text that replaces `table ip sluice-nat` in the
// namespace of a NAT gateway.
//
// For a reset to answer the later traffic of a flow that timed out, as its chains mean it,
// the namespace needs the sysctls net.netfilter.nf_conntrack_tcp_loose=0, else such a
// packet opens a flow anew, and nf_conntrack_tcp_be_liberal=1, else a packet out of its
// window is taken for one of an unknown flow and resets a live one.
func CompileNAT(in NATInput) (string, error) {
	if err := checkNATInput(in); err != nil {
		return "", err
	}
	c := natCompiler{in: in}
	c.header()
	c.prerouting()
	c.forward()
	c.input()
	c.postrouting()
	c.out.WriteString("}\n")
	return c.out.String(), nil
}

func checkNATInput(in NATInput) error {
	for _, name := range []string{in.Inside, in.Outside} {
		if err := checkInterface(name); err != nil {
			return err
		}
	}
	if in.Inside == in.Outside {
		return errs.New(errs.Invalid, "a NAT gateway's interface %s is both its inside and its outside", in.Inside)
	}
	for _, a := range in.SNAT {
		if !a.Is4() {
			return errs.New(errs.Invalid, "a NAT gateway's address %s is not IPv4", a)
		}
	}
	if len(in.InsidePrefixes) == 0 {
		return errs.New(errs.Invalid, "a NAT gateway has no prefix to translate")
	}
	for _, p := range in.InsidePrefixes {
		if !p.IsValid() || !p.Addr().Is4() {
			return errs.New(errs.Invalid, "a NAT gateway's inside prefix %s is not IPv4", p)
		}
	}
	return nil
}

type natCompiler struct {
	in  NATInput
	out strings.Builder
}

func (c *natCompiler) write(lines ...string) {
	for _, l := range lines {
		c.out.WriteString(l)
		c.out.WriteByte('\n')
	}
}

func (c *natCompiler) header() {
	var inside []span
	for _, p := range c.in.InsidePrefixes {
		inside = append(inside, prefixSpan(p))
	}
	c.write("# NAT gateway. The first two lines make the third a replacement in one step.",
		"table ip sluice-nat {}",
		"delete table ip sluice-nat",
		"table ip sluice-nat {",
		"\t# what is translated",
		"\tset inside {",
		"\t\ttype ipv4_addr",
		"\t\tflags interval",
		"\t\telements = { "+strings.Join(texts(merge(inside), span.addressText), ", ")+" }",
		"\t}", "",
		"\t# how many flows each member has here",
		"\tset flows {",
		"\t\ttype ipv4_addr",
		"\t\tsize 65535",
		"\t\tflags dynamic",
		"\t}", "")
}

func (c *natCompiler) prerouting() {
	c.write("\tchain prerouting {",
		"\t\ttype filter hook prerouting priority raw; policy drop;",
		"\t\ticmp type redirect counter drop comment \"redirects\"",
		fmt.Sprintf("\t\tiifname %q ip saddr @inside counter accept comment \"from the virtual network\"", c.in.Inside),
		fmt.Sprintf("\t\tiifname %q ip saddr != @inside counter accept comment \"from outside\"", c.in.Outside),
		"\t\tcounter drop comment \"spoofed\"",
		"\t}", "")
}

// reset answers what claims to belong to a flow that is not known: it timed out.
const reset = "tcp flags & (syn | rst | ack) == ack counter reject with tcp reset comment \"of a flow that is over\""

func (c *natCompiler) forward() {
	c.write("\tchain forward {",
		"\t\ttype filter hook forward priority filter; policy drop;",
		"\t\tct state established,related counter accept comment \"known flows\"",
		"\t\t"+reset,
		"\t\tct state invalid counter drop comment \"invalid\"",
		fmt.Sprintf("\t\tiifname != %q counter drop comment \"unsolicited\"", c.in.Inside),
		fmt.Sprintf("\t\toifname != %q counter drop comment \"no route\"", c.in.Outside),
		fmt.Sprintf("\t\tadd @flows { ip saddr ct count over %d } counter drop comment \"more flows than a member may have here\"",
			cmp.Or(c.in.MemberFlows, MaxMemberFlows)),
		"\t\ttcp flags & (fin | syn | rst | ack) == syn counter accept comment \"new TCP flow\"",
		"\t\tmeta l4proto udp counter accept comment \"new UDP flow\"",
		"\t\ticmp type echo-request counter accept comment \"ping\"",
		"\t\tcounter drop comment \"neither TCP, UDP nor ping\"",
		"\t}", "")
}

// input receives replies that no flow claims: the public addresses are this namespace's.
func (c *natCompiler) input() {
	c.write("\tchain input {",
		"\t\ttype filter hook input priority filter; policy drop;",
		"\t\tct state established,related accept",
		fmt.Sprintf("\t\tiifname %q %s", c.in.Outside, reset),
		"\t\tcounter drop comment \"unsolicited\"",
		"\t}", "")
}

func (c *natCompiler) postrouting() {
	addresses := slices.Clone(c.in.SNAT)
	slices.SortFunc(addresses, netip.Addr.Compare)
	addresses = slices.Compact(addresses)
	targets := []string{""}
	if len(addresses) > 0 {
		targets = nil
		for _, a := range addresses {
			targets = append(targets, a.String())
		}
	}
	for i, a := range targets {
		c.translate(i, a)
	}
	c.write("\tchain postrouting {",
		"\t\ttype nat hook postrouting priority srcnat; policy accept;",
		fmt.Sprintf("\t\toifname %q ip saddr @inside %s", c.in.Outside, spread(len(targets))),
		"\t}")
}

// translate writes the chain that translates to one address, or to the interface's.
func (c *natCompiler) translate(i int, to string) {
	ports, plain := "masquerade to :"+natPorts, "masquerade"
	if to != "" {
		ports, plain = "snat to "+to+":"+natPorts, "snat to "+to
	}
	c.write(fmt.Sprintf("\tchain translate_%d {", i),
		"\t\tmeta l4proto { tcp, udp } counter "+ports,
		"\t\tmeta l4proto icmp counter "+plain,
		"\t}", "")
}

// spread picks an address for each flow anew: every source may use the ports of every
// address, and one that finds no port tries another address with its next packet.
func spread(n int) string {
	if n == 1 {
		return "goto translate_0"
	}
	var parts []string
	for i := range n {
		parts = append(parts, fmt.Sprintf("%d : goto translate_%d", i, i))
	}
	return fmt.Sprintf("numgen random mod %d vmap { %s }", n, strings.Join(parts, ", "))
}
