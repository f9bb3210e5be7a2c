package fleet

import (
	"time"

	"github.com/sluice-gateway/sluice/internal/admission"
	"github.com/sluice-gateway/sluice/internal/core"
)

// Demand is what is asked of one class of a gateway, and what it can do.
type Demand struct {
	Queued   int    `json:"queued"`   // wait for a slot
	InFlight int    `json:"inFlight"` // hold one
	Slots    int    `json:"slots"`    // of the members that are ready
	Refused  uint64 `json:"refused"`  // since the service started, because the queue was full
}

// Demand returns what is asked of a gateway now, by class.
func (f *Fleet) Demand(gatewayUID string) map[core.QueryClass]Demand {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.demand(gatewayUID)
}

// demand is Demand for a caller that holds mu.
func (f *Fleet) demand(gatewayUID string) map[core.QueryClass]Demand {
	g := f.gates[gatewayUID]
	if g == nil {
		return nil
	}
	out := map[core.QueryClass]Demand{}
	for c, l := range g.lines {
		out[c] = Demand{Queued: l.queue.Len(), InFlight: l.running, Slots: f.slots(g, c), Refused: l.refused}
	}
	return out
}

// Demands returns what is asked of every gateway that was asked for something.
func (f *Fleet) Demands() map[GatewayRef]map[core.QueryClass]Demand {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[GatewayRef]map[core.QueryClass]Demand{}
	for uid, g := range f.gates {
		out[g.ref] = f.demand(uid)
	}
	return out
}

// slots returns how many queries of a class the ready members run at once. The caller
// holds mu.
func (f *Fleet) slots(g *gate, c core.QueryClass) int {
	l := g.lines[c]
	if l == nil {
		return 0
	}
	return f.usable(g.ref.UID) * l.limits.Concurrency
}

// usable returns how many members take queries. The caller holds mu.
func (f *Fleet) usable(gatewayUID string) (n int) {
	for _, m := range f.members[gatewayUID] {
		if m.takesQueries() {
			n++
		}
	}
	return n
}

// Order lists the names that label gives to the requests that wait at a gateway in a class,
// in the order in which they will be served if nothing that runs ends and nobody else comes.
func (f *Fleet) Order(gatewayUID string, c core.QueryClass, label func(Request) string) []string {
	f.mu.Lock()
	g := f.gates[gatewayUID]
	if g == nil || g.lines[c] == nil || g.lines[c].queue.Len() == 0 {
		f.mu.Unlock()
		return nil
	}
	copied := g.lines[c].queue.Clone()
	f.mu.Unlock()
	var out []string
	for _, w := range copied.Order() { // a waiter's request does not change
		out = append(out, label(w.req))
	}
	return out
}

// leastLoaded returns the ready member with a free slot that has the least to do for its
// speed, or nil. The caller holds mu.
func (f *Fleet) leastLoaded(g *gate, req Request, now time.Time) *member {
	var one *member
	var of []*member
	for _, m := range f.members[g.ref.UID] {
		if !m.takesQueries() || req.Class != "" && m.running(req.Class) >= req.Limits.Concurrency {
			continue
		}
		if one == nil {
			one = m // most gateways have one member: nothing is to be weighed
			continue
		}
		of = append(of, m)
	}
	if of == nil {
		return one
	}
	of = append(of, one)
	candidates := make([]admission.Candidate, len(of))
	for i, m := range of {
		candidates[i] = admission.Candidate{ID: m.ID, Load: m.load(), Pace: &m.pace, Last: m.ID == req.Avoid || f.suspicion(m, now) != ""}
	}
	return of[admission.Choose(now, candidates, admission.Cost(req.Class == core.ClassRefresh, 0))]
}

func (m *member) takesQueries() bool {
	return m.connected && !m.draining && m.condemned == "" && m.State == core.MemberReady
}

// running returns how many queries of a class a member runs.
func (m *member) running(c core.QueryClass) (n int) {
	for _, w := range m.work {
		if w.class == c {
			n++
		}
	}
	return n
}

// load is what a member has to do.
func (m *member) load() (sum float64) {
	for _, w := range m.work {
		sum += admission.Cost(w.refresh, w.streamed.Load())
	}
	return sum
}
