package policytest

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/policy"
)

// Text is a Fabric without a kernel: it compiles the rules and walks the chains of the
// text, as nftables would, for what is said about flows there. Routes are the evaluator's.
type Text struct {
	T *testing.T
	// Change adapts what is compiled. Default: none.
	Change func(*policy.VNetInput)

	// Bucketed counts the texts that had buckets.
	Bucketed int

	vnet    core.GoalVNet
	chains  map[string][][]string // lines as words
	sets    map[string][]string   // elements
	decided map[string]int
}

// Apply implements Fabric.
func (x *Text) Apply(v core.GoalVNet) {
	x.T.Helper()
	in := policy.VNetInput{VNet: v, Resolvers: Network().Resolvers}
	if x.Change != nil {
		x.Change(&in)
	}
	text, err := policy.CompileVNet(in)
	if err != nil {
		x.T.Fatal(err)
	}
	x.vnet, x.decided = v, map[string]int{}
	x.read(text)
	for name := range x.chains {
		if strings.HasSuffix(name, "_tcp") {
			x.Bucketed++
			break
		}
	}
}

// Decided implements Fabric.
func (x *Text) Decided() map[string]int { return x.decided }

// Carry implements Fabric.
func (x *Text) Carry(flows []policy.Flow) []bool {
	net := Network()
	open := x.vnet
	open.NSGs, open.NICs, open.Subnets = nil, nil, append([]core.Subnet{}, open.Subnets...)
	for i := range open.Subnets {
		open.Subnets[i].NSG = ""
	}
	routes := policy.NewEvaluator(open, net.Resolvers)
	out := make([]bool, len(flows))
	for i, f := range flows {
		chain := "security_groups"
		if x.has("@resolvers", f.Destination.String()) && f.DestinationPort == 53 && (f.Protocol == core.ProtocolTCP || f.Protocol == core.ProtocolUDP) {
			chain = "platform_dns"
		}
		out[i] = x.walk(chain, packetOf(f)) != "drop" && net.Arrives(f, routes.Evaluate(f))
	}
	return out
}

// read takes the text apart: one element or rule is one line.
func (x *Text) read(text string) {
	x.chains, x.sets = map[string][][]string{}, map[string][]string{}
	what, name, inside := "", "", false
	for line := range strings.Lines(text) {
		words := split(line)
		switch {
		case len(words) == 0 || strings.HasPrefix(words[0], "#") || words[0] == "table" || words[0] == "delete":
		case inside && words[0] != "}":
			x.sets[name] = append(x.sets[name], strings.TrimSuffix(strings.Join(words, " "), " ,"))
		case inside:
			inside = false
		case words[0] == "set", words[0] == "map", words[0] == "chain":
			what, name = words[0], words[1]
			if what == "chain" {
				x.chains[name] = nil
			} else {
				x.sets[name] = nil
			}
		case words[0] == "elements":
			inside = true
		case words[0] == "}":
			what = ""
		case what == "chain" && words[0] != "type":
			x.chains[name] = append(x.chains[name], words)
		}
	}
}

// split makes words: braces and commas stand for themselves, quoted text is one word.
func split(line string) []string {
	var out []string
	for rest := strings.TrimSpace(line); rest != ""; rest = strings.TrimSpace(rest) {
		end := strings.IndexAny(rest, " ,{}")
		switch {
		case rest[0] == '"':
			end = 2 + strings.IndexByte(rest[1:], '"')
		case end == 0:
			end = 1
		case end < 0:
			end = len(rest)
		}
		out, rest = append(out, rest[:end]), rest[end:]
	}
	return out
}

// fields is what rules look at in a packet.
type fields map[string]string

func packetOf(f policy.Flow) fields {
	p := strings.ToLower(string(f.Protocol))
	out := fields{"ip saddr": f.Source.String(), "ip daddr": f.Destination.String(), "meta l4proto": p}
	if f.Protocol == core.ProtocolTCP || f.Protocol == core.ProtocolUDP {
		for _, header := range []string{p, "th"} {
			out[header+" sport"], out[header+" dport"] = strconv.Itoa(int(f.SourcePort)), strconv.Itoa(int(f.DestinationPort))
		}
	}
	return out
}

// walk gives the verdict of a chain: drop, accept, or return at its end.
func (x *Text) walk(chain string, p fields) string {
	lines, ok := x.chains[chain]
	if !ok {
		x.T.Fatalf("there is no chain %s", chain)
	}
	for _, words := range lines {
		switch verb, target := x.rule(chain, words, p); verb {
		case "jump":
			if v := x.walk(target, p); v != "return" {
				return v
			}
		case "goto":
			return x.walk(target, p)
		case "drop", "accept", "return":
			return verb
		}
	}
	return "return"
}

// rule gives what a rule does with a packet: "" if it does not match.
func (x *Text) rule(chain string, words []string, p fields) (verb, target string) {
	for i := 0; i < len(words); {
		switch words[i] {
		case "counter":
			if strings.HasPrefix(chain, "nsg_") {
				x.decided[strings.Trim(words[len(words)-1], `"`)]++
			}
			i++
		case "drop", "accept", "return":
			return words[i], ""
		case "jump", "goto":
			return words[i], words[i+1]
		default:
			value, known := p[words[i]+" "+words[i+1]]
			if i += 2; words[i] == "vmap" {
				operand, _ := operandOf(words[i+1:])
				return x.lookup(operand, value, known)
			}
			operand, n := operandOf(words[i:])
			if !known || !x.has(operand, value) {
				return "", ""
			}
			i += n
		}
	}
	x.T.Fatalf("chain %s: a rule without a verdict: %v", chain, words)
	return "", ""
}

// operandOf reads a value, a reference or an anonymous set, as text, and how many words
// it took.
func operandOf(words []string) (string, int) {
	if words[0] != "{" {
		return words[0], 1
	}
	for i, w := range words {
		if w == "}" {
			return strings.Join(words[1:i], " "), i + 1
		}
	}
	return "", len(words)
}

func (x *Text) elements(operand string) []string {
	name, is := strings.CutPrefix(operand, "@")
	if !is {
		return strings.Split(operand, " , ")
	}
	list, ok := x.sets[name]
	if !ok {
		x.T.Fatalf("there is no set %s", name)
	}
	return list
}

func (x *Text) has(operand, value string) bool {
	for _, e := range x.elements(operand) {
		if within(e, value) {
			return true
		}
	}
	return false
}

func (x *Text) lookup(operand, value string, known bool) (verb, target string) {
	for _, e := range x.elements(operand) {
		key, verdict, ok := strings.Cut(e, " : ")
		if known && ok && within(key, value) {
			verb, target, _ = strings.Cut(verdict, " ")
			return verb, target
		}
	}
	return "", ""
}

// within reports whether a value is an element's: equal, in its prefix, or in its range.
func within(element, value string) bool {
	if element == value {
		return true
	}
	if p, err := netip.ParsePrefix(element); err == nil {
		a, err := netip.ParseAddr(value)
		return err == nil && p.Contains(a)
	}
	lo, hi, isRange := strings.Cut(element, "-")
	return isRange && compare(lo, value) <= 0 && compare(value, hi) <= 0
}

// compare orders two addresses or two ports.
func compare(a, b string) int {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	if errX == nil && errY == nil {
		return x.Compare(y)
	}
	n, _ := strconv.Atoi(a)
	m, _ := strconv.Atoi(b)
	return n - m
}
