package admission

import (
	"testing"
	"time"
)

var now = time.Unix(1000, 0)

// pace is that of a member whose answers took so long, a moment ago.
func pace(took ...time.Duration) *Pace {
	p := &Pace{}
	for _, d := range took {
		p.Observe(now.Add(-time.Second), d)
	}
	return p
}

func same(d time.Duration) *Pace { return pace(d, d, d, d, d) }

func TestChoose(t *testing.T) {
	const ms = time.Millisecond
	old := &Pace{}
	for range paceSamples {
		old.Observe(now.Add(-paceAge), 100*ms)
	}
	for _, tt := range []struct {
		name string
		of   []Candidate
		want int
	}{
		{"none", nil, -1},
		{"the least loaded", []Candidate{{ID: "a", Load: 2, Pace: &Pace{}}, {ID: "b", Load: 1, Pace: &Pace{}}}, 1},
		{"equal ones by ID", []Candidate{{ID: "b", Pace: &Pace{}}, {ID: "a", Pace: &Pace{}}}, 1},
		{"a slow one that is idle", []Candidate{{ID: "a", Pace: same(20 * ms)}, {ID: "b", Load: 3, Pace: same(2 * ms)}}, 1},
		{"not for ever", []Candidate{{ID: "a", Pace: same(20 * ms)}, {ID: "b", Load: 12, Pace: same(2 * ms)}}, 0},
		{"one quick answer shows that a member is not slow", []Candidate{{ID: "a", Pace: pace(900*ms, 900*ms, 2*ms, 900*ms, 900*ms)}, {ID: "b", Load: 1, Pace: same(2 * ms)}}, 0},
		{"too little is known", []Candidate{{ID: "a", Pace: pace(900*ms, 900*ms)}, {ID: "b", Load: 1, Pace: same(2 * ms)}}, 0},
		{"differences below the floor", []Candidate{{ID: "a", Pace: same(900 * time.Microsecond)}, {ID: "b", Load: 1, Pace: same(100 * time.Microsecond)}}, 0},
		{"a slow one is tried again after a while", []Candidate{{ID: "a", Pace: old}, {ID: "b", Load: 1, Pace: same(ms)}}, 0},
		{"with one query at a time", []Candidate{{ID: "a", Load: 1, Pace: old}, {ID: "b", Load: 4, Pace: same(ms)}}, 1},
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
