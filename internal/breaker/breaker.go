// Package breaker decides whether a data source that could not be reached is tried again.
//
// It is a small state machine without clock or lock: closed while connections come about,
// open for a growing time once several in a row did not, then one try at a time. The service
// feeds it and is its only caller.
package breaker

import "time"

// State is how a breaker stands.
type State string

// The states, as the API shows them.
const (
	Available State = "Available" // queries are sent
	Down      State = "Down"      // queries are refused until Next
	Trying    State = "Trying"    // one query finds out whether it is back, others are refused
)

const (
	// threshold is how many connections in a row must fail.
	threshold = 5
	firstRest = 2 * time.Second
	maxRest   = 30 * time.Second
	// tryTime is how long a try may take to show something; then another one is let through. It
	// may wait for a member, or run for long before it answers.
	tryTime = 30 * time.Second
)

// Breaker is that of one data source. The zero value is closed.
type Breaker struct {
	failures int
	reason   string
	last     time.Time // of the last failure
	since    time.Time // of the first failure in a row
	rest     time.Duration
	next     time.Time // when it is tried again, if rest is not 0
	tried    time.Time // when the try under way began; zero: there is none
}

// Status tells how a breaker stands, and why.
type Status struct {
	State    State
	Failures int // in a row
	Reason   string
	Since    time.Time
	Last     time.Time
	Next     time.Time // of Down
}

// Allow reports whether a query may be sent. If it may, what came of it must be told to
// Succeeded, Failed or Unknown.
func (b *Breaker) Allow(now time.Time) bool {
	if b.rest == 0 {
		return true
	}
	if b.trying(now) || now.Before(b.next) {
		return false
	}
	b.tried = now
	return true
}

// trying reports whether a try is waited for.
func (b *Breaker) trying(now time.Time) bool {
	return !b.tried.IsZero() && now.Sub(b.tried) < tryTime
}

// Succeeded says that a connection came about.
func (b *Breaker) Succeeded() { *b = Breaker{} }

// Unknown says that a query ended without showing whether the source can be reached.
func (b *Breaker) Unknown() { b.tried = time.Time{} }

// Failed says that a connection did not come about.
func (b *Breaker) Failed(now time.Time, reason string) {
	if b.failures == 0 {
		b.since = now
	}
	b.failures++
	b.reason, b.last = reason, now
	if b.rest > 0 && b.tried.IsZero() {
		return // it was on its way before the breaker opened
	}
	b.tried = time.Time{}
	if b.failures < threshold {
		return
	}
	b.rest = min(max(2*b.rest, firstRest), maxRest)
	b.next = now.Add(b.rest)
}

// Status returns how the breaker stands.
func (b *Breaker) Status(now time.Time) Status {
	s := Status{State: Available, Failures: b.failures, Reason: b.reason, Since: b.since, Last: b.last}
	switch {
	case b.rest == 0:
	case b.trying(now) || !now.Before(b.next):
		s.State = Trying
	default:
		s.State, s.Next = Down, b.next
	}
	return s
}

// Closed reports whether there is nothing to remember.
func (b *Breaker) Closed() bool { return b.failures == 0 }
