package admission

import "time"

// Pace is how fast a member has been lately: the shortest of the last few times from a
// query's start to its answer. The shortest, because long ones may be the query's fault.
// The zero value knows nothing.
type Pace struct {
	recent [paceSamples]time.Duration
	count  int
	last   time.Time
}

const (
	paceSamples = 5
	// paceAge is after how long without a sample a slow member is tried again.
	paceAge = 10 * time.Second
	// maxSlowness bounds what a member's pace counts for.
	maxSlowness = 64
	// paceFloor is what no difference between two members is made of.
	paceFloor = time.Millisecond
)

// Observe takes a sample.
func (p *Pace) Observe(now time.Time, d time.Duration) {
	p.recent[p.count%paceSamples] = d
	p.count++
	p.last = now
}

// value returns the pace, or 0 while too little is known.
func (p *Pace) value() time.Duration {
	if p.count < paceSamples {
		return 0
	}
	out := p.recent[0]
	for _, d := range p.recent[1:] {
		out = min(out, d)
	}
	return max(out, paceFloor)
}

// Candidate is a member that could take a query.
type Candidate struct {
	ID   string
	Load float64 // what it has to do: the sum of the Costs of its queries
	Pace *Pace
	Last bool // it is taken only if there is no other
}

// Choose returns the index of the candidate that would be done first with what it has and
// one query more of a cost: load times slowness. Of equal ones it is that with the
// smallest ID. It returns -1 for none.
func Choose(now time.Time, candidates []Candidate, cost float64) int {
	var fastest time.Duration
	for _, c := range candidates {
		if v := c.Pace.value(); v > 0 && (fastest == 0 || v < fastest) {
			fastest = v
		}
	}
	best, bestScore := -1, 0.0
	for i, c := range candidates {
		score := (c.Load + cost) * slowness(now, c, fastest)
		if best < 0 || better(c, score, candidates[best], bestScore) {
			best, bestScore = i, score
		}
	}
	return best
}

func better(c Candidate, score float64, o Candidate, other float64) bool {
	if c.Last != o.Last {
		return o.Last
	}
	return score < other || score == other && c.ID < o.ID
}

// slowness says how many times slower than the fastest a member is. One that has nothing
// to do and was not tried for a while gets one query, to see whether it still is.
func slowness(now time.Time, c Candidate, fastest time.Duration) float64 {
	v := c.Pace.value()
	if v <= fastest || c.Load == 0 && now.Sub(c.Pace.last) >= paceAge {
		return 1
	}
	return min(float64(v)/float64(fastest), maxSlowness)
}

// What a query costs a member.
const (
	refreshWeight = 3
	streamUnit    = 4 << 20 // bytes of the result that count as another interactive query
	maxStreamed   = 8
)

// Cost is what a query counts for: its class, and how much it has streamed so far.
func Cost(refresh bool, streamed int64) float64 {
	c := 1.0
	if refresh {
		c = refreshWeight
	}
	return c + min(float64(streamed)/streamUnit, maxStreamed)
}
