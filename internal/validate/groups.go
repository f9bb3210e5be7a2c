package validate

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

const (
	maxASGs        = 3000
	maxASGsPerNIC  = 20
	maxTagPrefixes = 4000
)

// tagForm begins with a letter, so that no tag can be taken for an address.
var tagForm = regexp.MustCompile(`^[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?$`)

// most is how many resources of a kind a tenant may have; 0: any number.
func most(k core.Kind) int {
	return map[core.Kind]int{core.KindNetworkSecurityGroup: maxNSGs, core.KindApplicationSecurityGroup: maxASGs}[k]
}

// namesAddresses reports whether a rule may name it in place of addresses.
func (c *checker) namesAddresses(name string) bool {
	_, isGroup := c.byName[core.KindApplicationSecurityGroup][name]
	_, isTag := c.byName[core.KindServiceTag][name]
	return isGroup || isTag
}

func (c *checker) asg(g *core.ApplicationSecurityGroup) {
	c.label("name", g.Name)
	if _, err := netip.ParseAddr(g.Name); err == nil {
		c.bad("name", "%q is an address: a rule could not name the group", g.Name)
	}
	c.notBuiltIn(g.Name)
}

// notBuiltIn refuses a name that a rule would read as something else.
func (c *checker) notBuiltIn(name string) {
	for _, word := range append(tags(), anyWord) {
		if strings.EqualFold(word, name) {
			c.bad("name", "%q is built in: rules that name it mean %s", name, word)
		}
	}
}

func (c *checker) serviceTag(t *core.ServiceTag) {
	switch {
	case len(t.Name) > maxRuleName:
		c.bad("name", "has %d characters, at most %d are possible", len(t.Name), maxRuleName)
	case !tagForm.MatchString(t.Name):
		c.bad("name", "%q is not a tag's name: letters, digits and . _ -, a letter first", t.Name)
	}
	c.notBuiltIn(t.Name)
	if g, ok := c.byName[core.KindApplicationSecurityGroup][t.Name]; ok {
		c.bad("name", "%s has the name too: a rule could not tell them apart", objectOf(g))
	}
	switch {
	case len(t.Prefixes) == 0:
		c.bad("prefixes", "is missing: at least one prefix such as 10.20.0.0/16")
	case len(t.Prefixes) > maxTagPrefixes:
		c.bad("prefixes", "has %d prefixes, at most %d are possible", len(t.Prefixes), maxTagPrefixes)
		return
	}
	for i, p := range t.Prefixes {
		c.prefix(at("prefixes", i), p)
	}
}

// memberships judges the application security groups that an interface belongs to;
// whether they exist is a matter of references.
func (c *checker) memberships(groups []string) {
	const field = "applicationSecurityGroups"
	if len(groups) > maxASGsPerNIC {
		c.bad(field, "has %d groups, an interface belongs to at most %d", len(groups), maxASGsPerNIC)
	}
	for i, g := range groups {
		if first := slices.Index(groups, g); first < i {
			c.bad(at(field, i), "%q is named already (%s)", g, at(field, first))
		}
	}
}

func groupRefs(groups []string) []reference {
	var out []reference
	for i, g := range groups {
		out = append(out, reference{field: at("applicationSecurityGroups", i), kind: core.KindApplicationSecurityGroup, name: g})
	}
	return out
}

// ruleReferences lists what the rules of an NSG name in place of addresses. The names of
// groups and tags never meet, so each name counts as one of either.
func ruleReferences(n *core.NetworkSecurityGroup) []reference {
	var out []reference
	add := func(field string, entries []string) {
		for i, name := range entries {
			for _, kind := range []core.Kind{core.KindApplicationSecurityGroup, core.KindServiceTag} {
				out = append(out, reference{field: at(field, i), kind: kind, name: name})
			}
		}
	}
	for i, r := range n.Rules {
		add(at("rules", i)+".source", r.Source)
		add(at("rules", i)+".destination", r.Destination)
	}
	return out
}
