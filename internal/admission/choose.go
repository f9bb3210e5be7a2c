package admission

import "time"

// Typical knows how long statements take as a rule, by a number that stands for each. The
// zero value knows none.
type Typical struct{ of map[uint64]time.Duration }

const (
	// maxTypical is how many statements are known; then another one is forgotten.
	maxTypical = 512
	// typicalStep moves what is typical towards each sample, whatever its size: to where half
	// of the samples are longer. One that took very long moves it no further than others.
	typicalStep = 1.1
	// timeFloor is what no difference between two answers is made of.
	timeFloor = time.Millisecond
)

// Ratio returns how many times longer than as a rule a statement took, and learns from it.
// It returns 0 for one that is not known.
func (t *Typical) Ratio(statement uint64, took time.Duration) float64 {
	took = max(took, timeFloor)
	rule, known := t.of[statement]
	if !known {
		t.learn(statement, took)
		return 0
	}
	next := float64(rule) * typicalStep
	if took <= rule {
		next = float64(rule) / typicalStep
	}
	t.of[statement] = max(time.Duration(next), timeFloor)
	return float64(took) / float64(rule)
}

// Rule returns how long a statement takes as a rule, 0 for one that is not known.
func (t *Typical) Rule(statement uint64) time.Duration { return t.of[statement] }

// What makes an answer overdue: many times the rule, and long enough to be no hiccup.
const (
	overdueTimes = 16
	overdueFloor = time.Second
)

// Overdue reports whether a statement has waited for its answer so much longer than as a
// rule that its member may hang.
func (t *Typical) Overdue(statement uint64, waited time.Duration) bool {
	rule := t.Rule(statement)
	return rule > 0 && waited >= max(overdueTimes*rule, overdueFloor)
}

func (t *Typical) learn(statement uint64, took time.Duration) {
	if t.of == nil {
		t.of = map[uint64]time.Duration{}
	}
	if len(t.of) >= maxTypical {
		for other := range t.of { // whichever comes first
			delete(t.of, other)
			break
		}
	}
	t.of[statement] = took
}

// Pace is how slow a member has been lately: a moving average of how many times longer than
// as a rule its answers took. The zero value knows nothing.
type Pace struct {
	ratio float64
	count int
	last  time.Time
}

const (
	paceSamples = 4 // before it counts
	paceWeight  = 8 // of what was known against a new sample
	// paceAge is after how long without a sample a slow member is tried again.
	paceAge = 10 * time.Second
	// maxRatio bounds what one sample counts for, and what a member's pace does.
	maxRatio = 64
)

// Observe takes a sample: a Ratio. After a long pause what was known before is forgotten.
func (p *Pace) Observe(now time.Time, ratio float64) {
	ratio = min(ratio, maxRatio)
	if p.count == 0 || now.Sub(p.last) >= paceAge {
		p.ratio = ratio
	} else {
		p.ratio += (ratio - p.ratio) / paceWeight
	}
	p.count++
	p.last = now
}

// value returns the pace, or 0 while too little is known.
func (p *Pace) value() float64 {
	if p.count < paceSamples {
		return 0
	}
	return p.ratio
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
	fastest := 0.0
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
func slowness(now time.Time, c Candidate, fastest float64) float64 {
	v := c.Pace.value()
	if v <= fastest || c.Load == 0 && now.Sub(c.Pace.last) >= paceAge {
		return 1
	}
	return min(v/fastest, maxRatio)
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
