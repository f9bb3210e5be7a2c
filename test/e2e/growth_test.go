package e2e

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/client"
)

// TestGrowsOverHostsAndShrinks gives a gateway of one member, and two hosts, the load of four
// members at once, and then that of less than one, and lets it come to rest; no query fails.
func TestGrowsOverHostsAndShrinks(t *testing.T) {
	waiting.take(t)
	c := prepareCorp(t, t, sharedPG(t))
	c.rewrite("gateway.yaml", "members: {min: 0, max: 2}", "members: {min: 1, max: 4}\nclasses: {interactive: {concurrency: 4}}")
	c.Up("--shrink-after", "4s")
	c.AnotherHost("h2")
	eventually(t, 60*time.Second, "both hosts are there", func() bool {
		connected := 0
		for _, h := range items[hostItem](c, "hosts") {
			if h.Connected && h.Load.MemoryMiB > 0 {
				connected++
			}
		}
		return connected == 2
	})
	c.applyExample()
	eventually(t, 90*time.Second, "one member without any query", func() bool { return len(c.readyMembers()) == 1 })

	light := c.burst(t, 1, "0.05")
	heavy := c.burst(t, 16, "1.5")
	on := map[string]int{}
	eventually(t, 120*time.Second, "four members take queries", func() bool {
		clear(on)
		for _, m := range c.readyMembers() {
			on[m.Host]++
		}
		return on["h1"]+on["h2"] == 4
	})
	if on["h1"] != 2 || on["h2"] != 2 {
		t.Errorf("members on hosts: %v", on)
	}
	if !c.grewAtOnce() {
		t.Error("each new member had an occasion of its own: the load asked for several at once")
	}
	t.Logf("%d queries of the large load", heavy())

	eventually(t, 180*time.Second, "one member is left", func() bool { return len(items[memberItem](c, "members")) == 1 })
	t.Logf("%d queries of the small load", light())
	for n := 4; n > 1; n-- {
		if why := fmt.Sprintf("%d of %d members have been enough for 4s", n-1, n); !c.someLeft(why) {
			t.Errorf("nobody left because %s: %+v", why, c.life().Status.MemberHistory)
		}
	}
	if h := c.life().Status.History; len(h) == 0 || h[0].To != "Running" {
		t.Errorf("the gateway did not stay Running: %+v", h)
	}
}

type hostItem struct {
	Name      string
	Connected bool
	Image     string
	Load      struct{ MemoryMiB int64 }
}

// burst has clients query all the time, each one query that takes so many seconds, until stop,
// which says how many there were. None may fail; a client ends with its first that does.
func (c *corp) burst(t *testing.T, clients int, seconds string) (stop func() int64) {
	t.Helper()
	api := c.Client()
	var over atomic.Bool
	var ran atomic.Int64
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			for !over.Load() {
				if got, err := answer(api, "select 7 as v from pg_sleep("+seconds+")"); err != nil || got != "v\r\n7\r\n" {
					t.Errorf("a query failed: %q, %v", got, err)
					return
				}
				ran.Add(1)
			}
		})
	}
	stop = func() int64 {
		over.Store(true)
		running.Wait()
		return ran.Load()
	}
	t.Cleanup(func() { stop() }) // before the service ends, also if the test has failed
	return stop
}

// answer reads the whole result of a query.
func answer(api *client.Client, sql string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	res, err := api.Query(ctx, queryOf(sql), client.MediaCSV)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return string(text), err
}

// grewAtOnce reports whether one occasion gave the gateway several members.
func (c *corp) grewAtOnce() bool {
	c.t.Helper()
	last := ""
	for line := range strings.Lines(c.Proc("up").Log.String()) {
		if !strings.Contains(line, "gateway grows") {
			continue
		}
		_, reason, _ := strings.Cut(line, "reason=")
		if reason == last && strings.Contains(reason, "the slots of") {
			return true
		}
		last = reason
	}
	return false
}

// someLeft reports whether a member of the gateway left for a reason.
func (c *corp) someLeft(why string) bool {
	c.t.Helper()
	for _, h := range c.life().Status.MemberHistory {
		if h.To == "leaving" && h.Reason == why {
			return true
		}
	}
	return false
}
