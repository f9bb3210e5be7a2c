package fleet

import (
	"cmp"
	"slices"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

// stalledAfter is after how long a result of which the client takes nothing counts as stalled
// where others wait for its slot. Without them its class's own limit holds, which is longer.
const stalledAfter = 10 * time.Second

// relieve sees to it that one user's stalled results don't hold all slots of a class: while
// others wait, those beyond half of the slots lose theirs, the longest stalled first.
func (f *Fleet) relieve() {
	f.mu.Lock()
	now := f.opts.Now()
	var over []*Work
	for _, g := range f.gates {
		for _, c := range classKeys {
			if g.lines[c].queue.Len() > 0 {
				over = append(over, f.stalled(g, c, now)...)
			}
		}
	}
	f.mu.Unlock()
	for _, w := range over {
		idle := w.idle(now)
		if idle < stalledAfter { // its client has gone on meanwhile
			f.mu.Lock()
			w.lost = false
			f.mu.Unlock()
			continue
		}
		f.log.Warn("a stalled result loses its slot", "member", w.member.ID, "gateway", w.gate.ref.Name, "user", w.user, "idle", idle)
		w.cut(idle)
		w.end()
	}
}

// stalled lists the works of a class that are to lose their slots. The caller holds mu.
func (f *Fleet) stalled(g *gate, c core.QueryClass, now time.Time) (over []*Work) {
	of := map[string][]*Work{}
	for _, m := range f.members[g.ref.UID] {
		for _, w := range m.work {
			if w.class == c && w.cut != nil && !w.lost && w.idle(now) >= stalledAfter {
				of[w.user] = append(of[w.user], w)
			}
		}
	}
	most := f.slots(g, c) / 2
	for user, works := range of {
		if len(works) > most && g.lines[c].queue.OthersWait(user) {
			slices.SortFunc(works, func(a, b *Work) int { return cmp.Compare(a.handed.Load(), b.handed.Load()) })
			over = append(over, works[:len(works)-most]...)
			for _, w := range over {
				w.lost = true
			}
		}
	}
	return over
}

// idle is for how long the client has taken nothing of what it was handed.
func (w *Work) idle(now time.Time) time.Duration {
	at := w.handed.Load()
	if at == 0 {
		return 0
	}
	return now.Sub(time.Unix(0, at))
}
