package admission

import (
	"testing"
	"time"
)

var now = time.Unix(1000, 0)

// pace is that of a member whose answers took so many times longer than as a rule.
func pace(ago time.Duration, ratios ...float64) *Pace {
	p := &Pace{}
	for _, r := range ratios {
		p.Observe(now.Add(-ago), r)
	}
	return p
}

func same(r float64) *Pace { return pace(time.Second, r, r, r, r, r, r, r, r) }

func TestChoose(t *testing.T) {
	old := pace(paceAge, 50, 50, 50, 50)
	for _, tt := range []struct {
		name string
		of   []Candidate
		want int
	}{
		{"none", nil, -1},
		{"the least loaded", []Candidate{{ID: "a", Load: 2, Pace: &Pace{}}, {ID: "b", Load: 1, Pace: &Pace{}}}, 1},
		{"equal ones by ID", []Candidate{{ID: "b", Pace: &Pace{}}, {ID: "a", Pace: &Pace{}}}, 1},
		{"a slow one that is idle", []Candidate{{ID: "a", Pace: same(10)}, {ID: "b", Load: 3, Pace: same(1)}}, 1},
		{"not for ever", []Candidate{{ID: "a", Pace: same(10)}, {ID: "b", Load: 12, Pace: same(1)}}, 0},
		{"one that stalls now and then", []Candidate{{ID: "a", Pace: pace(time.Second, 1, 1, 1, 40, 1, 1, 40)}, {ID: "b", Load: 2, Pace: same(1)}}, 1},
		{"one that stalled once, a while ago", []Candidate{{ID: "a", Pace: pace(time.Second, append([]float64{1, 1, 40}, make([]float64, 30)...)...)}, {ID: "b", Load: 1, Pace: same(1)}}, 0},
		{"too little is known", []Candidate{{ID: "a", Pace: pace(time.Second, 50, 50)}, {ID: "b", Load: 1, Pace: same(1)}}, 0},
		{"a slow one is tried again after a while", []Candidate{{ID: "a", Pace: old}, {ID: "b", Load: 1, Pace: same(1)}}, 0},
		{"with one query at a time", []Candidate{{ID: "a", Load: 1, Pace: old}, {ID: "b", Load: 4, Pace: same(1)}}, 1},
		{"the last resort is one", []Candidate{{ID: "a", Pace: &Pace{}, Last: true}, {ID: "b", Load: 9, Pace: &Pace{}}}, 1},
		{"and is taken alone", []Candidate{{ID: "a", Pace: &Pace{}, Last: true}}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Choose(now, tt.of, 1); got != tt.want {
				t.Errorf("chose %d, want %d", got, tt.want)
			}
		})
	}
}

func TestSlowMemberThatRecoversIsBack(t *testing.T) {
	p := pace(paceAge, 50, 50, 50, 50, 50)
	p.Observe(now, 1)
	if got := Choose(now, []Candidate{{ID: "a", Pace: p}, {ID: "b", Load: 1, Pace: same(1)}}, 1); got != 0 {
		t.Errorf("chose %d: its one try was as fast as any", got)
	}
}

// TestTypical: long statements make no member slow, and rare long answers don't change what is
// typical.
func TestTypical(t *testing.T) {
	var typ Typical
	const ms = time.Millisecond
	if r := typ.Ratio(1, 10*ms); r != 0 {
		t.Errorf("the first has the ratio %g", r)
	}
	typ.Ratio(2, 5*time.Second)
	for range 30 {
		typ.Ratio(1, 10*ms)
		typ.Ratio(2, 5*time.Second)
	}
	typ.Ratio(1, time.Hour)
	for statement, took := range map[uint64]time.Duration{1: 10 * ms, 2: 5 * time.Second} {
		if r := typ.Ratio(statement, took); r < 0.8 || r > 1.25 {
			t.Errorf("statement %d, that takes %s as a rule, has the ratio %g", statement, took, r)
		}
	}
	if r := typ.Ratio(1, time.Second); r < 50 {
		t.Errorf("a hundred times as long has the ratio %g", r)
	}
	for i := range uint64(2000) {
		typ.Ratio(100+i, time.Microsecond)
	}
	if len(typ.of) > maxTypical {
		t.Errorf("%d statements are known", len(typ.of))
	}
}

func TestCost(t *testing.T) {
	for _, tt := range []struct {
		name     string
		refresh  bool
		streamed int64
		want     float64
	}{
		{"interactive", false, 0, 1},
		{"refresh", true, 0, 3},
		{"what it streams counts", false, 8 << 20, 3},
		{"up to a bound", true, 1 << 40, 11},
	} {
		if got := Cost(tt.refresh, tt.streamed); got != tt.want {
			t.Errorf("%s: %g, want %g", tt.name, got, tt.want)
		}
	}
}

func TestOverdue(t *testing.T) {
	const ms = time.Millisecond
	var typ Typical
	typ.Ratio(1, 10*ms)
	typ.Ratio(2, time.Second)
	for _, tt := range []struct {
		name      string
		statement uint64
		waited    time.Duration
		want      bool
	}{
		{"nothing is known of it", 3, time.Hour, false},
		{"as long as a rule", 1, 10 * ms, false},
		{"many times as long, but a hiccup", 1, 900 * ms, false},
		{"many times as long", 1, time.Second, true},
		{"long, as it is as a rule", 2, 10 * time.Second, false},
		{"long, for a long one", 2, 16 * time.Second, true},
	} {
		if got := typ.Overdue(tt.statement, tt.waited); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
