package e2e

import (
	"encoding/json"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// lifeItem is what "sluice get gateway NAME -o json" says of its life.
type lifeItem struct {
	Status struct {
		State, Reason string
		Problem       string
		Since         time.Time
		Members       []struct{ ID, State, Reason, Image string }
		MemberHistory []struct{ Member, To, Event, Reason string }
		History       []struct {
			At                      time.Time
			From, To, Event, Reason string
		}
	}
}

func (c *corp) life() lifeItem {
	c.t.Helper()
	var out lifeItem
	if err := json.Unmarshal([]byte(c.Must("get", "gateway", gateway, "-o", "json")), &out); err != nil {
		c.t.Fatal(err)
	}
	return out
}

// changed returns the reason of the newest change of the gateway to a state.
func (c *corp) changed(to string) string {
	c.t.Helper()
	for _, h := range c.life().Status.History {
		if h.To == to {
			return h.Reason
		}
	}
	c.t.Errorf("the gateway was never %s", to)
	return ""
}

// TestAutoPauseAndWake lets a gateway pause by itself, and queries wake it.
func TestAutoPauseAndWake(t *testing.T) {
	waiting.take(t)
	c := newCorp(t)
	c.rewrite("gateway.yaml", "autoPause: 30m", "autoPause: 2s")
	c.applyExample()
	if got := c.value("select 1"); got != "1" {
		t.Errorf("got %q", got)
	}
	if why := c.changed("Waking"); why != "a query needs it" {
		t.Errorf("it woke because of %q", why)
	}
	eventually(t, 60*time.Second, "paused by itself, nothing left", func() bool {
		return c.gatewayState() == "Paused" && len(memberPIDs(c)) == 0
	})
	if why := c.life().Status.Reason; why != "no query for 2s" {
		t.Errorf("it paused because of %q", why)
	}
	if got := c.value("select 2"); got != "2" {
		t.Errorf("got %q", got)
	}
	if table := c.Must("get", "gateways"); !strings.Contains(table, "SINCE") || !strings.Contains(table, "Running") {
		t.Errorf("the table:\n%s", table)
	}
}

// TestAMemberThatHangsIsReplaced stops a member's process: it is found by the heartbeats that
// it misses.
func TestAMemberThatHangsIsReplaced(t *testing.T) {
	waiting.take(t)
	c := newCorp(t)
	c.value("select 1")
	m := c.onlyMember()
	for _, pid := range memberPIDs(c) {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 90*time.Second, "another member takes queries, the hung one is gone", func() bool {
		list := items[memberItem](c, "members")
		return len(list) == 1 && list[0].ID != m.ID && list[0].State == "ready"
	})
	if why := c.changed("Draining"); !strings.Contains(why, m.ID) || !strings.Contains(why, "missed its heartbeats") {
		t.Errorf("it was replaced because of %q", why)
	}
	if got := c.value("select 3"); got != "3" {
		t.Errorf("got %q", got)
	}
}

func (c *corp) readyMembers() (out []memberItem) {
	c.t.Helper()
	for _, m := range items[memberItem](c, "members") {
		if m.State == "ready" {
			out = append(out, m)
		}
	}
	return out
}

// load has clients query one after the other until stop, which says how many queries there
// were. None may fail.
func (c *corp) load(clients int) (stop func() int64) {
	var over atomic.Bool
	var ran atomic.Int64
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			for !over.Load() {
				if r := c.query("select 7 as v from pg_sleep(0.2)"); r.Exit != 0 || r.Out != "v\r\n7\r\n" {
					c.t.Errorf("a query failed: exit %d, %q\n%s", r.Exit, r.Out, r.Err)
				}
				ran.Add(1)
			}
		})
	}
	return func() int64 {
		over.Store(true)
		running.Wait()
		return ran.Load()
	}
}

// TestRollingReplacement changes the size of a gateway of two members under load.
func TestRollingReplacement(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	c.rewrite("gateway.yaml", "members: {min: 0, max: 2}", "members: {min: 2, max: 2}\nsize: {cpus: 1, memoryMiB: 512}")
	c.applyExample()
	eventually(t, 60*time.Second, "two members without any query", func() bool { return len(c.readyMembers()) == 2 })
	old := c.readyMembers()
	stop := c.load(3)
	c.rewrite("gateway.yaml", "memoryMiB: 512", "memoryMiB: 640")
	c.applyExample()
	eventually(t, 120*time.Second, "both are replaced", func() bool {
		list := items[memberItem](c, "members")
		for _, m := range list {
			if m.State != "ready" || m.ID == old[0].ID || m.ID == old[1].ID {
				return false
			}
		}
		return len(list) == 2
	})
	t.Logf("%d queries ran meanwhile", stop())
	if h := c.life().Status.History; len(h) == 0 || h[0].To != "Running" || h[0].From != "Waking" {
		t.Errorf("the gateway did not stay Running: %+v", h)
	}
}
