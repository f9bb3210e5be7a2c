package linux

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/policy"
	"github.com/sluice-gateway/sluice/internal/policy/policytest"
	"github.com/sluice-gateway/sluice/internal/testseed"
)

func compiled(t *testing.T, g core.GoalVNet, ports ...hostnet.Port) string {
	t.Helper()
	in := policy.VNetInput{VNet: g}
	for _, p := range ports {
		in.Ports = append(in.Ports, policy.PortBinding{
			Interface: portLink(p.Key()), MAC: "02:00:00:00:00:01", Address: p.Address, Subnet: p.Subnet,
		})
	}
	text, err := policy.CompileVNet(in)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// changes is delta on texts.
func changes(from, to string) (string, bool) {
	c, ok := delta(parseText(from), parseText(to))
	return c.text, ok
}

func TestDelta(t *testing.T) {
	g := corp("u1")
	a, b := member(g, 1, 1), member(g, 2, 2)
	one, two := compiled(t, g, a), compiled(t, g, a, b)
	grown, ok := changes(one, two)
	if !ok || strings.Count(grown, "add element inet sluice") != 3 || strings.Contains(grown, portLink(a.Key())) {
		t.Errorf("a port more: %v\n%s", ok, grown)
	}
	shrunk, ok := changes(two, one)
	if !ok || shrunk != strings.ReplaceAll(grown, "add element", "delete element") {
		t.Errorf("a port less: %v\n%s", ok, shrunk)
	}
	denied := cloneVNet(g)
	denied.NSGs[0].Rules[0].Access = core.Deny
	changed, ok := changes(one, compiled(t, denied, a))
	if !ok || strings.Count(changed, "flush chain") != 1 || strings.Count(changed, "add rule") != 5 {
		t.Errorf("another rule: %v\n%s", ok, changed)
	}
	for name, to := range map[string]string{
		"the same": one, "another hook": strings.ReplaceAll(one, "hook forward priority filter", "hook forward priority raw"),
		"another table": strings.ReplaceAll(one, "sluice", "slice"), "a set of another type": strings.ReplaceAll(one, "type ifname\n", "type ipv4_addr\n"),
	} {
		if text, ok := changes(one, to); ok {
			t.Errorf("%s: delta gave\n%s", name, text)
		}
	}
}

// held applies texts one after the other in a namespace of their own, and lists what the
// kernel then has.
func (l *lab) held(texts ...string) string {
	l.t.Helper()
	s, err := openPath("", l.space("n"+random(2)))
	if err != nil {
		l.t.Fatal(err)
	}
	defer s.close()
	r, err := newRuleset(s)
	if err != nil {
		l.t.Fatal(err)
	}
	defer r.close()
	table := ""
	for i, text := range texts {
		if err := r.apply(l.ctx(), text); err != nil {
			l.t.Fatalf("text %d: %v", i, err)
		}
		now := nft(l.t, s.path, "-j", "list", "tables")
		if table = cmp.Or(table, now); now != table {
			change, _ := changes(texts[i-1], text)
			l.t.Errorf("text %d replaced the table, so the kernel refused the change:\n%.20000s", i, change)
		}
		table = now
	}
	list := nft(l.t, s.path, "-s", "-j", "list", "ruleset")
	var out struct{ Nftables []map[string]map[string]any }
	if err := json.Unmarshal([]byte(list), &out); err != nil {
		l.t.Fatal(err)
	}
	var lines []string
	for i, o := range out.Nftables {
		for what, fields := range o {
			order := 0
			if what == "rule" {
				order = i // within its chain; chains stand in the order in which they came
			}
			delete(fields, "handle")
			b, _ := json.Marshal(fields)
			lines = append(lines, fmt.Sprintf("%v %s %05d %s", fields["chain"], what, order, b))
		}
	}
	slices.Sort(lines)
	for i := range lines {
		lines[i] = ordinal.ReplaceAllString(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

var ordinal = regexp.MustCompile(` \d{5} `)

// TestDeltaIsTheSameAsReplacing lets the kernel compare the two ways.
func TestDeltaIsTheSameAsReplacing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := corp("u1")
	a, b, c := member(g, 1, 1), member(g, 2, 2), member(g, 3, 3)
	last := compiled(t, g, a, c)
	if d := gocmp.Diff(l.held(last), l.held(compiled(t, g), compiled(t, g, a, b), last)); d != "" {
		t.Errorf("-replaced +changed:\n%s", d)
	}
}

// TestRandomDeltas goes through random rule sets, each time by a delta.
func TestRandomDeltas(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := policytest.NewGenerator(testseed.Of(t), 12)
	for _, bucketsFrom := range []int{1 << 20, -1} {
		var texts []string
		for range 12 {
			text, err := policy.CompileVNet(policy.VNetInput{VNet: g.VNet(), Resolvers: policytest.Network().Resolvers, BucketsFrom: bucketsFrom})
			if err != nil {
				t.Fatal(err)
			}
			texts = append(texts, text)
		}
		for i, text := range texts[1:] {
			if _, ok := changes(texts[i], text); !ok && text != texts[i] {
				t.Errorf("no delta to text %d", i+1)
			}
		}
		if d := gocmp.Diff(l.held(texts[len(texts)-1]), l.held(texts...)); d != "" {
			t.Errorf("buckets from %d: -replaced +changed:\n%s", bucketsFrom, d)
		}
	}
}

// TestTheLargestIsCounted: 1,000 rules in buckets, and 4,000 addresses on either side of
// one, are in the kernel to the last element.
func TestTheLargestIsCounted(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := manyRules(corp("u1"), 999, 0)
	r := &g.NSGs[0].Rules[0]
	r.Destination = nil
	for i := range 4000 {
		r.Source = append(r.Source, fmt.Sprintf("100.64.%d.%d", i/100, 2*(i%100)))
		r.Destination = append(r.Destination, fmt.Sprintf("100.80.%d.%d/31", i/100, 2*(i%100)))
	}
	text := compiled(t, g)
	l.held(text) // verifies
	want := intended(parseText(text))
	if want.elements["inet sluice addresses_1"] != 4000 || want.total() < 2000 || want.anonymousElements < 50 {
		t.Errorf("%d addresses, %d rules, %d intervals of ports", want.elements["inet sluice addresses_1"], want.total(), want.anonymousElements)
	}
}

// TestRulesAreCounted: the count of rules in a text is what the kernel holds of it.
func TestRulesAreCounted(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s, err := openPath("", l.world)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	r, err := newRuleset(s)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	text := compiled(t, corp("u1"), member(corp("u1"), 1, 1))
	if err := r.apply(l.ctx(), text); err != nil {
		t.Fatal(err)
	}
	if n := intended(parseText(text)).total(); n < 20 {
		t.Errorf("counted %d rules only", n)
	}
	handle := strings.Fields(nft(t, l.world, "-a", "list", "chain", "inet", "sluice", "output"))
	nft(t, l.world, "delete", "rule", "inet", "sluice", "output", "handle", handle[len(handle)-3])
	if r.holds(text) {
		t.Error("a rule is gone, and the ruleset counts as whole")
	}
	if err := r.verify(parseText(text), nil); err == nil {
		t.Error("a rule is gone, and the count did not show it")
	}
	if err := r.apply(l.ctx(), text); err != nil {
		t.Fatal(err)
	}
	nft(t, l.world, "delete", "element", "inet", "sluice", "virtual_network", "{ 10.20.0.0/16 }")
	if err := r.verify(parseText(text), nil); err == nil || !contains(err.Error(), "0 of 1 elements of set inet sluice virtual_network") {
		t.Errorf("an element is gone: %v", err)
	}
	nft(t, l.world, "add", "chain", "inet", "sluice", "another")
	if err := r.verify(parseText(text), nil); err == nil || !contains(err.Error(), "chains") {
		t.Errorf("a chain too many: %v", err)
	}
	if err := r.apply(l.ctx(), text+"nonsense\n"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("nonsense was applied: %v", err)
	}
}
