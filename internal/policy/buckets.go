package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// bucketsFrom is the number of rules of a direction past which a new flow no longer walks
// all of them: it goes by its destination port to those that can match the port.
const bucketsFrom = 200

// maxCopies bounds how often the buckets repeat the rules, on average. Many rules for
// any port beside many ports would fill the kernel; such a group stays linear.
const maxCopies = 8

// rulesOf writes the rules of one direction: one after the other or, past the threshold,
// in buckets by destination port. Both give the same verdicts through the same rules.
func (c *vnetCompiler) rulesOf(chain string, rules []nftRule) {
	if len(rules) > c.threshold() {
		tcp, udp := bucketize(rules, core.ProtocolTCP), bucketize(rules, core.ProtocolUDP)
		if tcp.size()+udp.size() <= maxCopies*len(rules) {
			c.bucketed(chain, rules, tcp, udp)
			return
		}
	}
	c.linear(chain, rules)
}

func (c *vnetCompiler) threshold() int {
	if c.in.BucketsFrom != 0 {
		return c.in.BucketsFrom
	}
	return bucketsFrom
}

// buckets splits the destination ports of one protocol into intervals; each interval has
// the rules that can match a packet to it, by priority.
type buckets struct {
	protocol  core.Protocol
	intervals []interval
	lists     []bucket
}

// interval is a run of ports and the list for them.
type interval struct {
	ports span
	list  int
}

// bucket is a list of rules; first is the lowest port that leads to it, which names it.
type bucket struct {
	first uint32
	rules []int
}

// bucketize makes the buckets of a protocol. Intervals with the same rules share a list.
func bucketize(rules []nftRule, p core.Protocol) buckets {
	out := buckets{protocol: p}
	known := map[string]int{}
	starts := cuts(rules, p)
	for i, lo := range starts {
		hi := uint32(maxPort)
		if i+1 < len(starts) {
			hi = starts[i+1] - 1
		}
		list := matching(rules, p, lo)
		key := fmt.Sprint(list)
		at, ok := known[key]
		if !ok {
			at = len(out.lists)
			known[key] = at
			out.lists = append(out.lists, bucket{first: lo, rules: list})
		}
		out.add(interval{span{lo, hi}, at})
	}
	return out
}

const maxPort = 1<<16 - 1

// add appends an interval, or lengthens the last one if it leads to the same list.
func (b *buckets) add(i interval) {
	if last := len(b.intervals) - 1; last >= 0 && b.intervals[last].list == i.list {
		b.intervals[last].ports.hi = i.ports.hi
		return
	}
	b.intervals = append(b.intervals, i)
}

func (b buckets) size() int {
	n := 0
	for _, l := range b.lists {
		n += len(l.rules)
	}
	return n
}

// cuts lists, sorted, the ports at which the set of rules that match can change.
func cuts(rules []nftRule, p core.Protocol) []uint32 {
	out := []uint32{0}
	for _, r := range rules {
		if !r.concerns(p) {
			continue
		}
		for _, s := range r.to {
			out = append(out, s.lo)
			if s.hi < maxPort {
				out = append(out, s.hi+1)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// concerns reports whether the rule can match a packet of the protocol.
func (r nftRule) concerns(p core.Protocol) bool {
	return !r.impossible && (r.protocol == p || r.protocol == core.ProtocolAny)
}

// matching lists the rules that can match a packet to a port, up to one that matches
// every such packet: what is behind it is never asked.
func matching(rules []nftRule, p core.Protocol, port uint32) []int {
	var out []int
	for i, r := range rules {
		if !r.concerns(p) || r.to != nil && !contains(r.to, port) {
			continue
		}
		out = append(out, i)
		if r.source == "" && r.destination == "" && r.from == nil {
			break
		}
	}
	return out
}

func contains(spans []span, n uint32) bool {
	i, found := slices.BinarySearchFunc(spans, n, func(s span, n uint32) int {
		switch {
		case s.hi < n:
			return -1
		case s.lo > n:
			return 1
		}
		return 0
	})
	return found && i < len(spans)
}

// bucketed writes the chain that leads to the buckets, and the buckets. What is neither
// TCP nor UDP meets, in the first chain, the rules for it.
func (c *vnetCompiler) bucketed(chain string, rules []nftRule, both ...buckets) {
	first := []string{fmt.Sprintf("meta l4proto vmap { tcp : goto %s_tcp, udp : goto %s_udp }", chain, chain)}
	for _, r := range rules {
		if r.impossible || r.protocol != core.ProtocolTCP && r.protocol != core.ProtocolUDP && r.from == nil && r.to == nil {
			first = append(first, r.line())
		}
	}
	for _, b := range both {
		c.buckets(chain+"_"+keyword(b.protocol), rules, b)
	}
	c.chain(chain, first)
}

func (c *vnetCompiler) buckets(chain string, rules []nftRule, b buckets) {
	name := func(list int) string { return fmt.Sprintf("%s_%d", chain, b.lists[list].first) }
	for i, l := range b.lists {
		lines := make([]string, len(l.rules))
		for j, r := range l.rules {
			transport := ""
			if rules[r].from != nil {
				transport = portMatch(keyword(b.protocol), rules[r].from, nil)
			}
			lines[j] = rules[r].text(transport)
		}
		c.chain(name(i), lines)
	}
	elements := make([]string, len(b.intervals))
	for i, v := range b.intervals {
		elements[i] = v.ports.portText() + " : goto " + name(v.list)
	}
	c.chain(chain, []string{fmt.Sprintf("%s dport vmap { %s }", keyword(b.protocol), strings.Join(elements, ", "))})
}
