package policy

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// bucketsFrom is the number of rules of a direction past which a new flow no longer walks
// all of them: it goes by its destination port to those that can match the port.
const bucketsFrom = 200

// maxCopies bounds how often the buckets repeat the rules, on average. Many rules for
// any port beside many ports would fill the kernel: then neighbouring intervals share a
// bucket, and in the end one bucket is left, which is the linear chain.
const maxCopies = 4

// rulesOf writes the rules of one direction: one after the other or, past the threshold,
// in buckets by destination port. Both give the same verdicts through the same rules.
func (c *vnetCompiler) rulesOf(chain string, rules []nftRule) {
	if len(rules) > c.threshold() {
		tcp, udp := fitted(rules, core.ProtocolTCP), fitted(rules, core.ProtocolUDP)
		if len(tcp.lists) > 1 || len(udp.lists) > 1 {
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

// fitted makes the finest buckets that do not repeat the rules too often.
func fitted(rules []nftRule, p core.Protocol) buckets {
	most := maxCopies * len(rules)
	tail := tailOf(rules, p)
	for together := 1; ; together *= 2 {
		runs := intervals(rules[:tail], p, together)
		if len(runs) > 1 && roughSize(rules[:tail], p, runs) > 4*most {
			continue
		}
		b := bucketize(rules, p, tail, runs)
		if len(b.lists) == 1 || b.size() <= most {
			return b
		}
	}
}

// roughSize counts the rules of all intervals, before those with the same rules share a
// list: what is far too much need not be made.
func roughSize(rules []nftRule, p core.Protocol, runs []span) int {
	n := 0
	for _, r := range rules {
		switch {
		case !r.concerns(p):
		case r.to == nil:
			n += len(runs)
		default:
			for _, s := range r.to {
				n += 1 + find(runs, s.hi) - find(runs, s.lo)
			}
		}
	}
	return n
}

// buckets splits the destination ports of one protocol into disjoint intervals; each
// leads to the rules that can match a packet to it, by priority.
type buckets struct {
	protocol  core.Protocol
	intervals []interval
	lists     []bucket
	// tail is the first of the last rules, none of which names a destination port. Every
	// bucket goes on with them, so they stand once.
	tail int
}

// interval is a run of ports and the list for them.
type interval struct {
	ports span
	list  int
}

// bucket is a list of rules; first is the lowest port that leads to it, which names it.
type bucket struct {
	first  uint32
	rules  []entry
	closed bool // the last rule matches all: what is behind it is never asked
}

// entry is a rule in a bucket. A rule that covers the bucket's ports need not look at them.
type entry struct {
	rule   int
	covers bool
}

const maxPort = 1<<16 - 1

// bucketize makes the buckets of a protocol, one per run of ports. Runs with the same
// rules share a list.
func bucketize(rules []nftRule, p core.Protocol, tail int, runs []span) buckets {
	out := buckets{protocol: p, tail: tail}
	lists := make([]bucket, len(runs))
	for i, r := range rules[:out.tail] {
		if !r.concerns(p) {
			continue
		}
		to := r.to
		if to == nil {
			to = []span{{0, maxPort}}
		}
		for _, s := range to {
			for j := find(runs, s.lo); j < len(runs) && runs[j].lo <= s.hi; j++ {
				lists[j].add(i, r, s.lo <= runs[j].lo && runs[j].hi <= s.hi)
			}
		}
	}
	known := map[string]int{}
	for j, l := range lists {
		key := l.key()
		at, ok := known[key]
		if !ok {
			l.first = runs[j].lo
			at = len(out.lists)
			known[key] = at
			out.lists = append(out.lists, l)
		}
		out.add(interval{runs[j], at})
	}
	return out
}

// tailOf finds where the rules begin that no longer name destination ports.
func tailOf(rules []nftRule, p core.Protocol) int {
	for i := len(rules); i > 0; i-- {
		if r := rules[i-1]; r.concerns(p) && r.to != nil {
			return i
		}
	}
	return 0
}

// intervals cuts all ports where the set of rules that match can change, and puts so many
// of the pieces together.
func intervals(rules []nftRule, p core.Protocol, together int) []span {
	cuts := []uint32{0}
	for _, r := range rules {
		if !r.concerns(p) {
			continue
		}
		for _, s := range r.to {
			cuts = append(cuts, s.lo, s.hi+1)
		}
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	var out []span
	for i := 0; i < len(cuts) && cuts[i] <= maxPort; i += together {
		hi := uint32(maxPort)
		if i+together < len(cuts) {
			hi = min(hi, cuts[i+together]-1)
		}
		out = append(out, span{cuts[i], hi})
	}
	return out
}

// find gives the interval that holds a port.
func find(runs []span, port uint32) int {
	i, _ := slices.BinarySearchFunc(runs, port, func(s span, port uint32) int {
		if s.hi < port {
			return -1
		}
		return 0
	})
	return i
}

// concerns reports whether the rule can match a packet of the protocol.
func (r nftRule) concerns(p core.Protocol) bool {
	return !r.impossible && (r.protocol == p || r.protocol == core.ProtocolAny)
}

// add appends a rule, once, unless an earlier one matches everything.
func (b *bucket) add(i int, r nftRule, covers bool) {
	if b.closed || len(b.rules) > 0 && b.rules[len(b.rules)-1].rule == i {
		return
	}
	b.rules = append(b.rules, entry{i, covers})
	b.closed = covers && r.source == "" && r.destination == "" && r.from == nil
}

// key tells lists apart.
func (b bucket) key() string {
	var out []byte
	for _, e := range b.rules {
		n := uint64(e.rule) << 1
		if e.covers {
			n++
		}
		out = binary.AppendUvarint(out, n)
	}
	return string(out)
}

// add appends an interval, or lengthens the last one if it leads to the same list.
func (b *buckets) add(i interval) {
	if last := len(b.intervals) - 1; last >= 0 && b.intervals[last].list == i.list {
		b.intervals[last].ports.hi = i.ports.hi
		return
	}
	b.intervals = append(b.intervals, i)
}

// size counts the rules of all buckets.
func (b buckets) size() int {
	n := 0
	for _, l := range b.lists {
		n += len(l.rules)
	}
	return n
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
	var tail bucket
	for i, r := range rules[b.tail:] {
		if r.concerns(b.protocol) {
			tail.add(b.tail+i, r, true)
		}
	}
	c.chain(chain+"_tail", lines(rules, tail, b.protocol))
	for i, l := range b.lists {
		text := lines(rules, l, b.protocol)
		if !l.closed {
			text = append(text, "goto "+chain+"_tail")
		}
		c.chain(name(i), text)
	}
	elements := make([]string, len(b.intervals))
	for i, v := range b.intervals {
		elements[i] = v.ports.portText() + " : goto " + name(v.list)
	}
	c.chain(chain, []string{fmt.Sprintf("%s dport vmap { %s }", keyword(b.protocol), strings.Join(elements, ", "))})
}

func lines(rules []nftRule, b bucket, p core.Protocol) []string {
	var out []string
	for _, e := range b.rules {
		r := rules[e.rule]
		to := r.to
		if e.covers {
			to = nil
		}
		out = append(out, r.text(portMatch(keyword(p), r.from, to)))
	}
	return out
}
