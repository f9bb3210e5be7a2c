package policy

import (
	"fmt"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// maxInline is how many spans of addresses a rule holds itself; more get a set, which
// the copies of the rule share.
const maxInline = 8

// addressSet is a set of addresses that rules refer to.
type addressSet struct {
	about string
	name  string
	spans []span
	// plain sets hold single addresses and grow by one without touching a neighbour.
	plain bool
}

// addressSets collects the sets that rules need, in the order in which they ask: a
// change of addresses alone changes no name.
type addressSets struct {
	byKey map[string]string
	list  []addressSet
	lists int
}

// set gives the name of the set for what one side of a rule names.
func (c *ruleCompiler) set(a addresses) string {
	key := strings.Join(a.names, "\n")
	if !a.alone {
		key += "\n\n" + strings.Join(texts(a.spans, span.addressText), " ")
	}
	if name, ok := c.sets.byKey[key]; ok {
		return name
	}
	s := addressSet{spans: a.spans}
	switch {
	case !a.alone:
		c.sets.lists++
		s.name, s.about = fmt.Sprintf("addresses_%d", c.sets.lists), "a rule's addresses"
	case c.isGroup(a.names[0]):
		s.name, s.about, s.plain = c.free("asg_"+shorten(identifier(a.names[0]), 80)), "application security group "+plain(a.names[0]), true
	default:
		s.name, s.about = c.free("tag_"+shorten(identifier(a.names[0]), 80)), "service tag "+plain(a.names[0])
	}
	c.sets.byKey[key] = s.name
	c.sets.list = append(c.sets.list, s)
	return s.name
}

func (c *ruleCompiler) isGroup(name string) bool { _, ok := c.groups[name]; return ok }

// free makes a name that no set has yet.
func (c *ruleCompiler) free(base string) string {
	name := base
	for i := 2; c.sets.has(name); i++ {
		name = fmt.Sprintf("%s_%d", base, i)
	}
	return name
}

func (s addressSets) has(name string) bool {
	for _, known := range s.list {
		if known.name == name {
			return true
		}
	}
	return false
}

// elements lists what the set holds, as text.
func (s addressSet) elements() []string {
	if !s.plain {
		return texts(s.spans, span.addressText)
	}
	var out []string
	for _, sp := range s.spans {
		for n := uint64(sp.lo); n <= uint64(sp.hi); n++ {
			out = append(out, address(uint32(n)).String())
		}
	}
	return out
}

func (s addressSet) flags() string {
	if s.plain {
		return ""
	}
	return "interval"
}

// groupSpans reads the addresses of a network's application security groups.
func groupSpans(v core.GoalVNet) map[string][]span {
	out := map[string][]span{}
	for _, g := range v.ASGs {
		var spans []span
		for _, a := range g.Addresses {
			spans = append(spans, span{number(a), number(a)})
		}
		out[g.Name] = merge(spans)
	}
	return out
}

// tagSpans reads the prefixes of the administrator's service tags.
func tagSpans(v core.GoalVNet) map[string][]span {
	out := map[string][]span{}
	for _, t := range v.ServiceTags {
		var spans []span
		for _, p := range t.Prefixes {
			if p.Addr().Is4() {
				spans = append(spans, prefixSpan(p))
			}
		}
		out[t.Name] = merge(spans)
	}
	return out
}
