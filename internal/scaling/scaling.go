// Package scaling decides how many members a gateway has: when it grows, when it
// shrinks, when it pauses, and which members are replaced.
//
// It is pure: what is the case goes in, one decision comes out, with its reason. The
// fleet asks once a second and whenever a member was lost, and does what it says;
// nothing else calls it.
package scaling

import (
	"fmt"
	"math"
	"time"
)

// Between these two shares of its members' slots a gateway neither grows nor shrinks.
const (
	growAbove   = 0.8
	shrinkBelow = 0.4
)

// State is what decides about a gateway. Members that drain don't count.
type State struct {
	Now      time.Time
	Min, Max int
	// AutoPause is after how long without a query it pauses; negative: never.
	AutoPause time.Duration
	// ShrinkAfter is for how long fewer members must have been enough.
	ShrinkAfter time.Duration

	Ready    int // members that take queries
	Starting int // members that are on their way
	// Replacing is how many of those, ready ones included, are to take the place of another
	// that is not draining yet.
	Replacing int
	// Outdated is how many of the ready ones differ from what a new one would be, and Differs
	// in what way one of them does.
	Outdated int
	Differs  string

	Busy   int     // queries that wait or run
	Queued int     // those that wait
	Load   float64 // how many members' slots they would fill

	Awake    bool      // it was woken, and not paused since
	Held     bool      // it was paused on purpose: Min does not count until it is woken
	PauseDue string    // why it is to pause as soon as it is idle; "" if it isn't
	LastUsed time.Time // when its last query ended, or it was woken
	LowSince time.Time // since when fewer members would do; zero: they would not
	Lost     string    // why the member that was lost last is gone
	// NotBefore is when it may be tried again to add a member: the last attempts failed.
	NotBefore time.Time
}

// Decision is what to do.
type Decision struct {
	Add     int    // so many members more
	Replace bool   // add one member in the place of an outdated one
	Retire  bool   // let one member drain
	Pause   bool   // let all drain
	Reason  string // of any of these
	// LowSince goes into the next State.
	LowSince time.Time
}

// Decide looks at one gateway.
func Decide(s State) Decision {
	n := s.Ready + s.Starting - s.Replacing
	if d, ok := pause(s, n); ok {
		return d
	}
	low := s.LowSince
	if n <= s.floor() || s.Load > shrinkBelow*float64(n-1) {
		low = time.Time{}
	} else if low.IsZero() {
		low = s.Now
	}
	d := size(s, n, low)
	d.LowSince = low
	if d.Retire {
		d.LowSince = s.Now // the next one goes after as long again
	}
	return d
}

// floor is how many members there are without any load.
func (s State) floor() int {
	switch {
	case s.Held:
		return 0
	case s.Awake:
		return max(s.Min, 1)
	}
	return s.Min
}

func pause(s State, n int) (Decision, bool) {
	idle := s.Now.Sub(s.LastUsed)
	switch {
	case n == 0 || s.Busy > 0:
	case s.PauseDue != "":
		return Decision{Pause: true, Reason: s.PauseDue}, true
	case s.Min == 0 && s.AutoPause >= 0 && idle >= s.AutoPause:
		return Decision{Pause: true, Reason: fmt.Sprintf("no query for %s", s.AutoPause)}, true
	}
	return Decision{}, false
}

// size decides about the number of members, now n.
func size(s State, n int, low time.Time) Decision {
	mayAdd := !s.Now.Before(s.NotBefore)
	switch {
	case n < s.floor():
		if !mayAdd {
			return Decision{}
		}
		return Decision{Add: s.floor() - n, Reason: s.whyFloor()}
	case n > s.Max && s.Starting == 0 && s.Replacing == 0:
		return Decision{Retire: true, Reason: fmt.Sprintf("members.max is %d", s.Max)}
	case s.Starting > 0 || s.Ready == 0:
		return Decision{} // what is on its way may be enough
	case mayAdd && n < s.Max && (s.Queued > 0 || s.Load > growAbove*float64(n)):
		want := min(max(int(math.Ceil(s.Load/growAbove)), n+1), s.Max)
		return Decision{Add: want - n, Reason: s.whyGrow(n)}
	case s.Replacing > 0:
		return Decision{}
	case mayAdd && s.Outdated > 0 && !s.Held:
		return Decision{Replace: true, Reason: s.Differs}
	case !low.IsZero() && s.Now.Sub(low) >= s.ShrinkAfter:
		return Decision{Retire: true, Reason: fmt.Sprintf("%d of %d members have been enough for %s", n-1, n, s.ShrinkAfter)}
	}
	return Decision{}
}

func (s State) whyFloor() string {
	if s.Lost != "" {
		return "in place of a member that was lost: " + s.Lost
	}
	if s.Min > 0 {
		return fmt.Sprintf("members.min is %d", s.Min)
	}
	return "the gateway is awake"
}

func (s State) whyGrow(n int) string {
	if s.Queued > 0 {
		return fmt.Sprintf("%d queries wait, the slots of %s are taken", s.Queued, members(n))
	}
	return fmt.Sprintf("%.0f %% of the slots of %s are taken", 100*s.Load/float64(n), members(n))
}

func members(n int) string {
	if n == 1 {
		return "1 member"
	}
	return fmt.Sprintf("%d members", n)
}

// Backoff is how long to wait before the next attempt to add a member after so many that
// came to nothing.
func Backoff(attempts int) time.Duration {
	const most = 5 * time.Minute
	if attempts <= 0 {
		return 0
	}
	if attempts > 9 {
		return most
	}
	return min(time.Second<<(attempts-1), most)
}
