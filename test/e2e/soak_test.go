package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/test/e2e/stack"
)

// What the soak does in all: in fifths, of which the first warms up and each two after it
// are compared.
const (
	soakQueries = 10_000
	soakWakes   = 500
	soakFifths  = 5

	soakGateways = 4  // that wake and pause
	soakClients  = 16 // of the gateway that stays
	soakBurst    = 8  // queries with which a paused gateway is woken
)

// TestPromise7NothingGrowsIn10000QueriesAnd500Wakes runs as many through a service and a host
// of their own, wrong queries and clients that go away among them. After a warm-up nothing is
// more than it was before: not in either half of the rest, so that what grows slowly is seen
// as well.
func TestPromise7NothingGrowsIn10000QueriesAnd500Wakes(t *testing.T) {
	busy.take(t)
	s := newSoak(t)
	legs := []*leg{{name: "warm", fifths: 1}, {name: "first half", fifths: 2}, {name: "second half", fifths: 2}}
	var before counts
	for _, leg := range legs {
		begun := time.Now()
		s.run(t, leg.fifths)
		leg.took = time.Since(begun)
		leg.counts = s.settledCounts(t, before)
		before = leg.counts
		t.Logf("%s: %v; %d queries and %d wakes in all", leg.name, leg.took.Round(time.Millisecond), s.queries.Load(), s.wakes.Load())
	}
	t.Logf("after the warm-up, the first half, the second half:%s", table(legs[0].counts, legs[1].counts, legs[2].counts))
	if q, w := s.queries.Load(), s.wakes.Load(); q < soakQueries || w < soakWakes {
		t.Errorf("%d queries and %d wakes, want %d and %d", q, w, soakQueries, soakWakes)
	}
	for i, leg := range legs[1:] {
		for _, grown := range grownBetween(legs[i].counts, leg.counts) {
			t.Errorf("in the %s grew: %s", leg.name, grown)
		}
	}
	rows := legs[2].counts["history: queries"]
	if want := int(s.queries.Load()); rows != want {
		t.Errorf("%d records of %d queries", rows, want)
	}
}

// leg is a part of the soak and what there was after it.
type leg struct {
	name   string
	fifths int
	took   time.Duration
	counts counts
}

// soak is a lab with a gateway that stays and some that come and go, each with a data source.
type soak struct {
	*lab
	queries, wakes atomic.Int64
}

func newSoak(t *testing.T) *soak {
	t.Helper()
	s := stack.NewFrom(t, stack.Plain(t))
	l := labOn(corpOn(t, s, sharedPG(t)))
	l.serviceFlags = []string{"--quarantine", "200ms"}
	l.startService()
	l.startHost()
	l.Ready()
	l.rewrite("gateway.yaml", "members: {min: 0, max: 2}", "members: {min: 0, max: 1}")
	l.applyExample()
	var docs strings.Builder
	for i := range soakGateways {
		fmt.Fprintf(&docs, "---\nkind: Gateway\nname: soak-%d\nvnet: corp\nsubnet: gateways\nmembers: {min: 0, max: 1}\n", i)
		fmt.Fprintf(&docs, "---\nkind: DataSource\nname: soak-%d\ngateway: soak-%d\ntype: postgres\n", i, i)
		fmt.Fprintf(&docs, "parameters: {host: orders.corp.internal, port: %d, database: orders, tls: disable}\n", l.PG.Port)
		fmt.Fprintf(&docs, "credentials: {kind: basic, username: report, password: %s}\n", password)
	}
	l.Apply(docs.String())
	return &soak{lab: l}
}

// run does so many fifths of everything, at once.
func (s *soak) run(t *testing.T, fifths int) {
	t.Helper()
	cycles := soakWakes / soakFifths / soakGateways * fifths
	steady := soakQueries/soakFifths*fifths - soakGateways*cycles*soakBurst
	var wg sync.WaitGroup
	for i := range soakGateways {
		wg.Go(func() {
			for n := range cycles {
				s.cycle(t, fmt.Sprintf("soak-%d", i), n)
			}
		})
	}
	var left atomic.Int64
	left.Store(int64(steady))
	for range soakClients {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				s.right(t, source)
			}
		})
	}
	wg.Wait()
}

// cycle wakes a gateway by a burst of queries, of which some end badly, and pauses it.
func (s *soak) cycle(t *testing.T, name string, n int) {
	var wg sync.WaitGroup
	for i := range soakBurst {
		wg.Go(func() {
			switch {
			case i > 0 || n%4 > 1:
				s.right(t, name)
			case n%4 == 0:
				s.wrong(t, name)
			default:
				s.left(t, name)
			}
		})
	}
	wg.Wait()
	s.wakes.Add(1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.api.Gateway(ctx, "pause", name); err != nil {
		t.Errorf("pause %s: %v", name, err)
	}
}

// right runs a query that works.
func (s *soak) right(t *testing.T, name string) {
	s.queries.Add(1)
	if err := askFor(t.Context(), s.api, name, "select g, md5(g::text) from generate_series(1, 100) g"); err != nil {
		t.Errorf("query through %s: %v", name, err)
	}
}

// wrong runs one that the data source refuses.
func (s *soak) wrong(t *testing.T, name string) {
	s.queries.Add(1)
	if err := askFor(t.Context(), s.api, name, "selec 1"); err == nil {
		t.Error("a wrong query worked")
	}
}

// left runs one whose client goes away.
func (s *soak) left(t *testing.T, name string) {
	s.queries.Add(1)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := askFor(ctx, s.api, name, "select pg_sleep(60)"); err == nil {
		t.Error("a client that went away got a result")
	}
}

func askFor(ctx context.Context, api *client.Client, name, sql string) error {
	res, err := api.Query(ctx, client.Query{Source: name, SQL: sql}, client.MediaCSV)
	if err != nil {
		return err
	}
	return drain(res)
}

// settledCounts waits until only the member of the gateway that stays is left, and the pool is
// full, and counts for a while: what comes and goes by itself counts with its least. While that
// is more than before, it waits longer: on a busy machine what has ended goes late.
func (s *soak) settledCounts(t *testing.T, before counts) counts {
	t.Helper()
	eventually(t, 60*time.Second, "one member and a full pool are left", func() bool {
		return len(s.containers()) == 1 && len(s.spaces("m")) == 1 && len(s.spaces("b")) == 1
	})
	least := counts{}
	grows := func() bool { return before != nil && len(grownBetween(before, least)) > 0 }
	for looks, end := 0, time.Now().Add(90*time.Second); looks < 5 || grows() && time.Now().Before(end); looks++ {
		for what, n := range s.count(t) {
			if old, ok := least[what]; !ok || n < old {
				least[what] = n
			}
		}
		time.Sleep(500 * time.Millisecond)
	}
	return least
}
