package linux

import (
	"fmt"
	"slices"
	"strings"
)

// delta gives the commands that turn one ruleset into another without replacing its
// tables: elements of sets, rules chain by chain, chains and sets that come and go. A
// member's coming or a rule's change touches little, and replacing a table would hold up
// whatever else happens in the namespace until the kernel freed the old one. It declines
// where only a replacement will do.
func delta(a, b tableText) (c change, ok bool) {
	if a.rest != b.rest || a.rest == "" {
		return c, false
	}
	d := deltaText{touched: map[string]bool{}}
	for _, key := range sortedKeys(b.sets) {
		if !d.set(key, a.sets[key], b.sets[key]) {
			return c, false
		}
	}
	for _, key := range sortedKeys(b.chains) {
		if !d.chain(key, a.chains[key], b.chains[key]) {
			return c, false
		}
	}
	if !d.gone(a, b) {
		return c, false
	}
	c = change{text: strings.Join(slices.Concat(d.make, d.empty, d.elements, d.rules, d.drop), ""), touched: d.touched}
	return c, c.text != ""
}

// change is the commands for nft, and the chains and sets that they fill.
type change struct {
	text    string
	touched map[string]bool
}

// deltaText collects commands by when they can be carried out: what is referred to
// exists before, and goes after, what refers to it.
type deltaText struct {
	make, empty, elements, rules, drop []string
	touched                            map[string]bool
}

func sayf(list *[]string, format string, args ...any) {
	*list = append(*list, fmt.Sprintf(format, args...)+"\n")
}

// set turns one set or map into another; a is nil for a new one.
func (d *deltaText) set(key string, a, b *setText) bool {
	if a == nil {
		sayf(&d.make, "add %s %s { %s; }", b.what, key, strings.Join(b.head, "; "))
		a = &setText{setHead: b.setHead}
	}
	if a.what != b.what || !slices.Equal(a.head, b.head) {
		return false
	}
	gone, added := beyond(a.elements, b.elements), beyond(b.elements, a.elements)
	if len(gone)+len(added) > 0 {
		d.touched[key] = true
	}
	if b.interval() && len(gone) > 0 {
		sayf(&d.elements, "flush %s %s", b.what, key) // neighbours may have merged
		gone, added = nil, b.elements
	}
	if len(gone) > 0 {
		sayf(&d.elements, "delete element %s { %s }", key, strings.Join(gone, ", "))
	}
	if len(added) > 0 {
		sayf(&d.elements, "add element %s { %s }", key, strings.Join(added, ", "))
	}
	return true
}

// chain turns one chain into another; a is nil for a new one. Hooks stay as they are.
func (d *deltaText) chain(key string, a, b *chainText) bool {
	switch {
	case a == nil && b.hook != "", a != nil && a.hook != b.hook:
		return false
	case a == nil:
		sayf(&d.make, "add chain %s", key)
	case slices.Equal(a.rules, b.rules):
		return true
	default:
		sayf(&d.empty, "flush chain %s", key)
	}
	d.touched[key] = true
	for _, r := range b.rules {
		sayf(&d.rules, "add rule %s %s", key, r)
	}
	return true
}

// gone drops what only a has: chains first, since they refer to sets.
func (d *deltaText) gone(a, b tableText) bool {
	for _, key := range sortedKeys(a.chains) {
		if b.chains[key] != nil {
			continue
		}
		if a.chains[key].hook != "" {
			return false
		}
		sayf(&d.empty, "flush chain %s", key)
		sayf(&d.drop, "delete chain %s", key)
	}
	for _, key := range sortedKeys(a.sets) {
		if b.sets[key] == nil {
			sayf(&d.drop, "delete %s %s", a.sets[key].what, key)
		}
	}
	return true
}

// tableText is a ruleset's text, taken apart. Keys are "inet sluice members": family,
// table and name.
type tableText struct {
	tables map[string]string // name → family
	rest   string            // what stands outside of sets and chains
	sets   map[string]*setText
	chains map[string]*chainText
}

type setHead struct {
	what string   // "set" or "map"
	head []string // type and flags
}

type setText struct {
	setHead
	elements []string
}

func (s *setText) interval() bool { return slices.Contains(s.head, "flags interval") }

type chainText struct {
	hook  string // "type filter hook …", empty for a chain that others lead to
	rules []string
}

// parseText reads rulesets in the form in which this project writes them: a rule is a
// line, and elements stand one per line between "elements = {" and "}", or all on one.
func parseText(text string) tableText {
	out := tableText{tables: map[string]string{}, sets: map[string]*setText{}, chains: map[string]*chainText{}}
	var rest strings.Builder
	table := ""
	var set *setText
	var chain *chainText
	elements := false
	for line := range strings.Lines(text) {
		word := strings.TrimSpace(line)
		fields := strings.Fields(word)
		switch {
		case len(fields) == 0, strings.HasPrefix(word, "#"):
		case elements && word == "}":
			elements = false
		case elements:
			set.elements = append(set.elements, strings.TrimSuffix(word, ","))
		case word == "}":
			set, chain = nil, nil
		case set != nil && word == "elements = {":
			elements = true
		case set != nil && fields[0] == "elements":
			inner := strings.TrimSuffix(strings.TrimPrefix(word, "elements = {"), "}")
			for e := range strings.SplitSeq(inner, ",") {
				set.elements = append(set.elements, strings.TrimSpace(e))
			}
		case set != nil:
			set.head = append(set.head, word)
		case chain != nil && fields[0] == "type":
			chain.hook = word
		case chain != nil:
			chain.rules = append(chain.rules, word)
		case fields[0] == "table" && fields[len(fields)-1] == "{":
			table = strings.Join(fields[1:3], " ")
			out.tables[fields[2]] = fields[1]
			rest.WriteString(line)
		case fields[0] == "set", fields[0] == "map":
			set = &setText{setHead: setHead{what: fields[0]}}
			out.sets[table+" "+fields[1]] = set
		case fields[0] == "chain":
			chain = &chainText{}
			out.chains[table+" "+fields[1]] = chain
		default:
			rest.WriteString(line)
		}
	}
	out.rest = rest.String()
	return out
}
