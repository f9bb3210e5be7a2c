package e2e

import (
	"encoding/json"
	"strings"
	"syscall"
	"testing"
	"time"
)

// items lists objects of a kind as they are in JSON.
func items[T any](c *corp, kind string) []T {
	c.t.Helper()
	var out struct{ Items []T }
	if err := json.Unmarshal([]byte(c.Must("get", kind, "-o", "json")), &out); err != nil {
		c.t.Fatal(err)
	}
	return out.Items
}

type (
	memberItem struct{ ID, Gateway, State, Address, Host, Reason, Image string }
	leaseItem  struct{ Address, VNet, Subnet, Member, State string }
)

// leased are the leases that someone holds.
func (c *corp) leased() []leaseItem {
	c.t.Helper()
	var out []leaseItem
	for _, l := range items[leaseItem](c, "leases") {
		if strings.EqualFold(l.State, "held") {
			out = append(out, l)
		}
	}
	return out
}

// onlyMember is the only member that there is.
func (c *corp) onlyMember() memberItem {
	c.t.Helper()
	list := items[memberItem](c, "members")
	if len(list) != 1 {
		c.t.Fatalf("want one member, there are %+v", list)
	}
	return list[0]
}

func (c *corp) gatewayState() string {
	c.t.Helper()
	var out struct{ Status struct{ State string } }
	if err := json.Unmarshal([]byte(c.Must("get", "gateway", gateway, "-o", "json")), &out); err != nil {
		c.t.Fatal(err)
	}
	return out.Status.State
}

func TestWakePauseRestart(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	wantState := func(want string) {
		t.Helper()
		if got := c.gatewayState(); got != want {
			t.Errorf("the gateway is %s, want %s", got, want)
		}
	}
	wantState("Paused")
	if out := c.Must("gateway", "wake", gateway); !strings.Contains(out, "Gateway/corp-bi running") {
		t.Errorf("wake: %s", out)
	}
	wantState("Running")
	first := c.onlyMember()
	if first.Gateway != gateway || first.Host != "h1" || !strings.HasPrefix(first.Address, "10.20.0.") {
		t.Errorf("the member: %+v", first)
	}
	if held := c.leased(); len(held) != 1 || held[0].Address != first.Address || held[0].Member != first.ID || held[0].Subnet != "gateways" || held[0].VNet != "corp" {
		t.Errorf("the leases: %+v", held)
	}
	c.Must("gateway", "wake", gateway)
	if again := c.onlyMember(); again.ID != first.ID {
		t.Errorf("a second wake replaced the member %s by %s", first.ID, again.ID)
	}

	c.Must("gateway", "restart", gateway)
	second := c.onlyMember()
	if second.ID == first.ID {
		t.Error("a restart left the old member")
	}
	if second.Address == first.Address {
		t.Error("the address is leased again at once, without its quarantine")
	}

	c.Must("gateway", "pause", gateway)
	wantState("Paused")
	if list := items[memberItem](c, "members"); len(list) != 0 {
		t.Errorf("members of a paused gateway: %+v", list)
	}
	if held := c.leased(); len(held) != 0 {
		t.Errorf("leases of a paused gateway: %+v", held)
	}
	if pids := memberPIDs(c); len(pids) != 0 {
		t.Errorf("processes of a paused gateway: %v", pids)
	}
	c.Must("gateway", "pause", gateway) // is paused
	if got := c.value("select 1"); got != "1" {
		t.Errorf("a query on a paused gateway: %q", got)
	}
	wantState("Running")
}

// TestPauseLetsQueriesFinish pauses a gateway that works.
func TestPauseLetsQueriesFinish(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	c.Must("gateway", "wake", gateway)
	type answer struct{ out, err string }
	done := make(chan answer, 1)
	go func() {
		r := c.query("select 'finished' as v from pg_sleep(3) -- outlives the pause")
		done <- answer{r.Out, r.Err}
	}()
	eventually(t, 60*time.Second, "the query runs", func() bool { return c.activity("outlives the pause") == 1 })
	c.Must("gateway", "pause", gateway)
	select {
	case a := <-done:
		if a.out != "v\r\nfinished\r\n" {
			t.Errorf("the query was not left to finish: %q\n%s", a.out, a.err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the gateway is paused and its query goes on")
	}
}

func TestTables(t *testing.T) {
	busy.take(t)
	c := sharedCorp(t)
	c.value("select 1")
	for kind, texts := range map[string][]string{
		"hosts":            {"NAME", "CONNECTED", "h1", "yes"},
		"leases":           {"ADDRESS", "10.20.0.", "corp", "gateways"},
		"members":          {"ID", gateway, "10.20.0.", "h1"},
		"gateways":         {gateway, "corp", "Running"},
		"virtualnetworks":  {"corp", "10.20.0.0/16"},
		"datasources":      {source, "postgres", gateway},
		"privateendpoints": {"orders-db", "10.20.1.4", "orders.corp.internal"},
		"queries":          {"select 1", source},
	} {
		out := c.Must("get", kind)
		for _, text := range texts {
			if !strings.Contains(out, text) {
				t.Errorf("get %s lacks %q:\n%s", kind, text, out)
			}
		}
	}
}

// TestStatusAndCleanup kills everything and removes what it left.
func TestStatusAndCleanup(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	c.Must("gateway", "wake", gateway)
	member := c.onlyMember().ID
	wantFailure(t, c.Sluice("host", "cleanup", "--run-dir", c.Run), 1, "in use", c.Run)
	if got := c.value("select 1"); got != "1" {
		t.Errorf("after the refused cleanup: %q", got)
	}

	c.Stop("up", syscall.SIGKILL)
	if len(memberPIDs(c)) == 0 {
		t.Error("the member did not outlive its host")
	}
	status := c.Must("host", "status", "--run-dir", c.Run)
	for _, text := range []string{"container", "member " + member + " of gateway " + gateway, "namespace"} {
		if !strings.Contains(status, text) {
			t.Errorf("host status lacks %q:\n%s", text, status)
		}
	}
	for line := range strings.Lines(status) {
		if len(strings.Fields(line)) < 3 {
			t.Errorf("host status does not say why: %s", line)
		}
	}
	for _, line := range c.Leftovers() {
		for _, kind := range []string{"namespace: ", "table: inet ", "table: ip "} {
			if name, ok := strings.CutPrefix(line, kind); ok && !strings.Contains(status, strings.TrimPrefix(name, "table ")) {
				t.Errorf("host status lacks %s:\n%s", line, status)
			}
		}
	}
	other := c.Sluice("host", "status", "--run-dir", c.Run+"/another")
	for _, text := range []string{"nothing exists on this machine because of the host with the run directory " + c.Run + "/another", "another host, with another --run-dir, made "} {
		if !strings.Contains(other.Err, text) {
			t.Errorf("the status of another host lacks %q:\n%s", text, other.Err)
		}
	}
	c.Must("host", "cleanup", "--run-dir", c.Run)
	if left := c.Leftovers(); len(left) != 0 {
		t.Errorf("left after the cleanup:\n%s", strings.Join(left, "\n"))
	}
	if status := c.Must("host", "status", "--run-dir", c.Run); strings.Contains(status, member) {
		t.Errorf("host status after the cleanup:\n%s", status)
	}
	c.Must("host", "cleanup", "--run-dir", c.Run) // nothing to do is no error

	c.Up() // on the same data: the service learns that its member is gone
	if got := c.value("select 2"); got != "2" {
		t.Errorf("a query after cleanup and restart: %q", got)
	}
	eventually(t, 60*time.Second, "the member that was removed is replaced by one other", func() bool {
		list := items[memberItem](c, "members")
		return len(list) == 1 && list[0].ID != member && list[0].State == "ready"
	})
}
