package linux

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/policy"
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

func TestDelta(t *testing.T) {
	g := corp("u1")
	a, b := member(g, 1, 1), member(g, 2, 2)
	one, two := compiled(t, g, a), compiled(t, g, a, b)
	grown, ok := delta(one, two)
	if !ok || strings.Count(grown, "add element inet sluice") != 3 || strings.Contains(grown, portLink(a.Key())) {
		t.Errorf("a port more: %v\n%s", ok, grown)
	}
	shrunk, ok := delta(two, one)
	if !ok || shrunk != strings.ReplaceAll(grown, "add element", "delete element") {
		t.Errorf("a port less: %v\n%s", ok, shrunk)
	}
	denied := cloneVNet(g)
	denied.NSGs[0].Rules[0].Access = core.Deny
	for name, to := range map[string]string{"another rule": compiled(t, denied, a), "the same": one} {
		if text, ok := delta(one, to); ok {
			t.Errorf("%s: delta gave\n%s", name, text)
		}
	}
}

// TestDeltaIsTheSameAsReplacing lets the kernel compare the two ways.
func TestDeltaIsTheSameAsReplacing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := corp("u1")
	a, b, c := member(g, 1, 1), member(g, 2, 2), member(g, 3, 3)
	listed := func(texts ...string) string {
		s, err := openPath("", l.space("n"+random(2)))
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		r, err := newRuleset(s)
		if err != nil {
			t.Fatal(err)
		}
		defer r.close()
		for _, text := range texts {
			if err := r.apply(l.ctx(), text); err != nil {
				t.Fatal(err)
			}
		}
		return nft(t, s.path, "-s", "list", "ruleset")
	}
	last := compiled(t, g, a, c)
	if d := cmp.Diff(listed(last), listed(compiled(t, g), compiled(t, g, a, b), last)); d != "" {
		t.Errorf("-replaced +changed:\n%s", d)
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
	if total(countRules(text)) < 20 {
		t.Errorf("counted %d rules only", total(countRules(text)))
	}
	handle := strings.Fields(nft(t, l.world, "-a", "list", "chain", "inet", "sluice", "output"))
	nft(t, l.world, "delete", "rule", "inet", "sluice", "output", "handle", handle[len(handle)-3])
	if r.holds(text) {
		t.Error("a rule is gone, and the ruleset counts as whole")
	}
	if err := r.verify(text); err == nil {
		t.Error("a rule is gone, and the count did not show it")
	}
	if err := r.apply(l.ctx(), text+"nonsense\n"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("nonsense was applied: %v", err)
	}
}
