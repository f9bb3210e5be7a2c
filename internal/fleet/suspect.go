package fleet

import (
	"fmt"
	"time"
)

// TunnelSilent is called when a heartbeat of a member is overdue, and again when the member
// is heard. Until it is known what is the matter other members are preferred.
func (f *Fleet) TunnelSilent(id string, generation int64, silent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.live[id]
	if m == nil || m.Generation != generation || m.silent == silent {
		return
	}
	m.silent = silent
	if silent {
		f.log.Warn("member suspect", "member", id, "gateway", m.Gateway, "reason", heartbeatOverdue)
		return
	}
	f.log.Info("member heard again", "member", id, "gateway", m.Gateway)
}

const heartbeatOverdue = "its heartbeat is overdue"

// suspicion says why a member that is connected may hang, or "". The caller holds mu.
func (f *Fleet) suspicion(m *member, now time.Time) string {
	if m.silent {
		return heartbeatOverdue
	}
	others := time.Time{} // when another member last answered; looked up for the first query that waits long
	for _, w := range m.work {
		waited := now.Sub(w.begun)
		if w.answered || w.asks == 0 || !w.gate.typical.Overdue(w.asks, waited) {
			continue
		}
		if others.IsZero() {
			others = f.lastAnswer(m)
		}
		if others.After(w.begun) {
			return fmt.Sprintf("a query that is answered within %s as a rule waits for %s, while other members answer",
				w.gate.typical.Rule(w.asks).Round(time.Millisecond), waited.Round(time.Millisecond))
		}
	}
	return ""
}

// lastAnswer is when another member of the gateway last began to answer. The caller holds mu.
func (f *Fleet) lastAnswer(m *member) (last time.Time) {
	for _, o := range f.members[m.GatewayUID] {
		if o != m && o.answered.After(last) {
			last = o.answered
		}
	}
	return last
}
