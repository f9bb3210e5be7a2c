package policytest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/policy"
	"github.com/sluice-gateway/sluice/internal/testseed"
)

// Fabric enforces the rules of Network's topology. Its methods fail the test by
// themselves when something other than a rule is in the way.
type Fabric interface {
	// Apply puts the rules of v in force and forgets all flows and counts.
	Apply(v core.GoalVNet)
	// Carry sends the first packet of each flow, and says which arrived at, or were
	// answered by, their destination.
	Carry(flows []policy.Flow) []bool
	// Decided counts the packets that each rule decided about since Apply, under the
	// rule's name in Label's form. Rules that decided about none are absent.
	Decided() map[string]int
}

// Label names a rule in one direction: "data/deny-all (4096) inbound".
func Label(d policy.Decision) string {
	return fmt.Sprintf("%s/%s (%d) %s", d.NSG, d.Rule, d.Priority, strings.ToLower(string(d.Direction)))
}

// Options of Run.
type Options struct {
	Sets  int // of random rules; required
	Flows int // per set; required
	// MaxRules bounds the rules of one random NSG. Default: 8.
	MaxRules int
	// Least is how often each outcome must come up, so that the run means something.
	// Default: 0.
	Least int
}

// Run holds a fabric against the tables and against random rule sets.
func Run(t *testing.T, f Fabric, o Options) {
	t.Helper()
	r := &runner{t: t, fabric: f, net: Network(), outcomes: map[string]int{}}
	for _, c := range Cases() {
		r.table(c)
	}
	g := NewGenerator(testseed.Of(t), o.MaxRules)
	for i := range o.Sets {
		if t.Failed() {
			return
		}
		v := g.VNet()
		var flows []policy.Flow
		for range o.Flows {
			flows = append(flows, g.Flow(flows))
		}
		r.compare(fmt.Sprintf("set %d", i), v, flows)
	}
	t.Logf("%d rule sets: %v", o.Sets, r.outcomes)
	for _, outcome := range []string{passed, unrouted, "denied Outbound subnet", "denied Outbound NIC", "denied Inbound subnet", "denied Inbound NIC"} {
		if r.outcomes[outcome] < o.Least {
			t.Errorf("%q came up %d times only, which is too seldom to mean anything", outcome, r.outcomes[outcome])
		}
	}
}

type runner struct {
	t        *testing.T
	fabric   Fabric
	net      Topology
	outcomes map[string]int
}

const (
	passed   = "passed"
	unrouted = "no route"
)

// compare applies rules, sends flows, and holds both answers of the fabric against the
// evaluator's.
func (r *runner) compare(name string, v core.GoalVNet, flows []policy.Flow) []policy.Verdict {
	r.t.Helper()
	e := policy.NewEvaluator(v, r.net.Resolvers)
	var verdicts []policy.Verdict
	decided := map[string]int{}
	for _, f := range flows {
		verdict := e.Evaluate(f)
		verdicts = append(verdicts, verdict)
		for _, d := range verdict.Decisions {
			decided[Label(d)]++
		}
		r.count(verdict)
	}
	r.fabric.Apply(v)
	arrived := r.fabric.Carry(flows)
	for i, f := range flows {
		if want := r.net.Arrives(f, verdicts[i]); arrived[i] != want {
			r.t.Errorf("%s: %+v: arrived: %v, the evaluator says %+v", name, f, arrived[i], verdicts[i])
		}
	}
	if diff := cmp.Diff(decided, r.fabric.Decided()); diff != "" {
		r.t.Errorf("%s: packets per deciding rule (-evaluator +fabric):\n%s", name, diff)
	}
	if r.t.Failed() {
		b, _ := json.MarshalIndent(v, "", " ")
		r.t.Logf("%s: %.20000s", name, b)
	}
	return verdicts
}

func (r *runner) count(v policy.Verdict) {
	switch d, is := v.Denial(); {
	case is:
		r.outcomes[fmt.Sprintf("denied %s %s", d.Direction, d.Level)]++
	case !v.Allowed:
		r.outcomes[unrouted]++
	default:
		r.outcomes[passed]++
	}
}

// table holds the fabric against one case, and the evaluator against what it says.
func (r *runner) table(c Case) {
	r.t.Helper()
	v := c.VNet()
	var flows []policy.Flow
	for i, f := range c.Flows {
		flow := f.Flow
		flow.SourcePort = uint16(40000 + i)
		flows = append(flows, flow)
	}
	for i, verdict := range r.compare(c.Name, v, flows) {
		got := make([]string, 0, len(verdict.Decisions))
		for _, d := range verdict.Decisions {
			got = append(got, d.String())
		}
		if diff := cmp.Diff(c.Flows[i].Decisions, got); diff != "" && len(got)+len(c.Flows[i].Decisions) > 0 {
			r.t.Errorf("%s: %+v: decisions (-table +evaluator):\n%s", c.Name, flows[i], diff)
		}
	}
}
