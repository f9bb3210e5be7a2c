package e2e

import (
	"flag"
	"runtime"
	"strconv"
	"testing"
)

// turns bounds how many tests run at once: each takes its turn first.
type turns chan struct{}

// Tests that keep a processor busy run as many at once as there are processors; beside them
// as many that do little but wait for time limits, heartbeats and leases.
var (
	busy    = make(turns, runtime.GOMAXPROCS(0))
	waiting = make(turns, runtime.GOMAXPROCS(0))
)

// take lets a test run beside others once it is its turn, until its end. One that has
// parallel subtests leaves that to them: it ends after them.
func (q turns) take(t *testing.T) {
	t.Helper()
	t.Parallel()
	q <- struct{}{}
	t.Cleanup(func() { <-q })
}

// leaveToTurns lets all tests begin, so that turns alone decide who waits for whom. The flag
// -parallel can make it fewer.
func leaveToTurns() {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		_ = flag.Set("test.parallel", strconv.Itoa(1000)) // it exists, and this is a number
	}
}
