package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/test/e2e/skew"
)

// Where clocks jump to, from the true time.
var jumps = []time.Duration{time.Hour, -time.Hour, 40 * 24 * time.Hour, 3 * time.Minute, -3 * time.Minute, 0}

// clocks is a lab whose service has one clock, and whose host, with the members on it, has another.
type clocks struct {
	*chaos
	service, host skew.Clock
}

func newClocks(t *testing.T) *clocks {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("programs get a clock of their own on amd64 only")
	}
	c := &clocks{chaos: &chaos{prepareLab(t, sharedPG(t))}}
	c.Launch = func(name string, cmd *exec.Cmd) error {
		if name == "service" {
			return c.service.Start(cmd)
		}
		return c.host.Start(cmd)
	}
	c.serviceFlags = []string{"--quarantine", "200ms"}
	c.startService()
	c.startHost()
	c.Ready()
	c.applyExample()
	c.Apply("kind: Gateway\nname: hourly\nvnet: corp\nsubnet: gateways\nmembers: {min: 0, max: 1}\nautoPause: 1s\nschedule: [{cron: \"0 * * * *\", action: wake}]\n" +
		"---\nkind: Gateway\nname: busy\nvnet: corp\nsubnet: gateways\nmembers: {min: 0, max: 1}\nautoPause: 20s\n" +
		"---\nkind: DataSource\nname: busy\ngateway: busy\ntype: postgres\n" +
		fmt.Sprintf("parameters: {host: orders.corp.internal, port: %d, database: orders, tls: disable}\n", c.PG.Port) +
		fmt.Sprintf("credentials: {kind: basic, username: report, password: %s}\n", password))
	return c
}

// TestClocksThatDifferByMinutesAreHarmless has service and host some minutes apart, either way
// round, while the gateway pauses and wakes and each of them starts anew: nothing fails.
func TestClocksThatDifferByMinutesAreHarmless(t *testing.T) {
	busy.take(t)
	c := newClocks(t)
	for _, apart := range []struct{ service, host time.Duration }{
		{3 * time.Minute, -3 * time.Minute}, {-3 * time.Minute, 3 * time.Minute}, {0, -time.Hour}, {0, time.Hour}, {-time.Hour, 0}, {time.Hour, 0},
	} {
		c.service.Set(apart.service)
		c.host.Set(apart.host)
		ask := func(when string) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			if wrong, err := c.series(ctx, 1000, 1); err != nil || wrong != nil {
				t.Errorf("service at %v, host at %v, %s: %v, %v", apart.service, apart.host, when, wrong, err)
			}
		}
		ask("after the clocks were set")
		c.Must("gateway", "pause", gateway)
		ask("woken")
		c.kill("host")
		c.startHost()
		c.Ready()
		c.Must("gateway", "pause", gateway)
		ask("woken by a new host")
	}
}

// TestServiceThatStartsDaysAhead starts the service with a clock by which every certificate has
// ended, and then with the true one: members and host come back by themselves, each time.
func TestServiceThatStartsDaysAhead(t *testing.T) {
	busy.take(t)
	c := newClocks(t)
	c.value("select 1")
	for _, offset := range []time.Duration{40 * 24 * time.Hour, 0} {
		c.service.Set(offset)
		c.kill("service")
		c.startService()
		c.Ready()
		begun := time.Now()
		worksAgain(t, c.api, 60*time.Second)
		t.Logf("with the service at %v, recovered after %v", offset, time.Since(begun))
		checkSettled(t, c.lab)
	}
}

// TestChaosClocksMove has 32 clients query while the clocks of service and host jump by
// hours and by weeks, and while both and the members are killed. Each answer is the right one or a clear
// error; gateways neither wake nor pause more often than their schedules and queries say; once
// the clocks are right, everything is.
func TestChaosClocksMove(t *testing.T) {
	busy.take(t)
	c := newClocks(t)
	watch := watchAddresses(t, c.corp)
	sum := &tally{failed: map[string]int{}}
	enough := func() bool {
		right, _ := sum.counts()
		return watch.samples.Load() >= 50 && right >= chaosClients
	}
	ctx, cancel := chaosContext(time.Minute, func() bool { return enough() && c.logged("hourly", "gateway Waking") > 0 })
	defer cancel()
	var wg sync.WaitGroup
	for i := range chaosClients {
		wg.Go(func() { c.askAndCheck(ctx, rand.New(rand.NewPCG(uint64(i), 7)), sum) })
	}
	m := newMonkey(c.lab, seeded(t))
	moves := 0
	for ctx.Err() == nil {
		m.pause(2500)
		c.move(m)
		if moves++; moves%3 == 0 {
			m.strike()
		}
	}
	wg.Wait()
	c.service.Set(0)
	c.host.Set(0)
	c.Ready()
	begun := time.Now()
	worksAgain(t, c.api, 90*time.Second)
	t.Logf("strikes %v, %d jumps; %d right answers, errors by class and step: %v; recovered after %v", m.strikes, moves, sum.right, sum.failed, time.Since(begun))
	c.checkPace(t, moves)
	c.checkCron(t)
	c.checkAutoPause(t)
	checkSettled(t, c.lab)
	if watch.end(); !enough() {
		t.Errorf("%d samples, %d right answers, errors %v: too little for this test to mean anything", watch.samples.Load(), sum.right, sum.failed)
	}
	for _, object := range [][2]string{{"datasource", "busy"}, {"gateway", "busy"}, {"gateway", "hourly"}} {
		c.Must("delete", object[0], object[1])
	}
	c.checkPauseLeavesNothing(t)
	c.checkDeleteLeavesNothing(t)
	if c.service.Answers() < 1000 || c.host.Answers() < 1000 {
		t.Errorf("the service asked for the time %d times, the host %d times: too little for this test to mean anything", c.service.Answers(), c.host.Answers())
	}
}

// move sets the clock of the service, of the host, or of both.
func (c *clocks) move(m *monkey) {
	to := jumps[m.rng.IntN(len(jumps))]
	which := m.rng.IntN(3)
	if which != 1 {
		c.service.Set(to)
	}
	if which != 0 {
		c.host.Set(to)
	}
}

// logged counts what the service has said of a gateway over all its restarts.
func (c *clocks) logged(gateway, message string) int {
	return strings.Count(c.Proc("service").Log.String(), fmt.Sprintf("msg=%q gateway=%s", message, gateway))
}

// checkPace looks at how often gateways woke and paused while the clocks jumped.
func (c *clocks) checkPace(t *testing.T, moves int) {
	t.Helper()
	woken, paused := c.logged("hourly", "gateway Waking"), strings.Count(c.Proc("service").Log.String(), `reason="no query for 30m`)
	t.Logf("in %d jumps the hourly gateway began to wake %d times; the busy one paused for want of queries %d times", moves, woken, paused)
	if woken == 0 || woken > 2*moves { // by the schedule once for each jump at most, and again where a member was killed
		t.Errorf("the hourly gateway began to wake %d times in %d jumps", woken, moves)
	}
	if paused > 0 {
		t.Errorf("a gateway with queries paused for want of queries %d times", paused)
	}
}

// checkCron looks whether a schedule is still followed after all that: at the next full hour,
// and not at once when the clock goes back before it.
func (c *clocks) checkCron(t *testing.T) {
	t.Helper()
	// Failed: its last wake met a host whose clock was weeks ahead, which can't wake members.
	idle := func() bool { s := c.state("hourly"); return s == core.GatewayPaused || s == core.GatewayFailed }
	eventually(t, 60*time.Second, "the hourly gateway pauses again", idle)
	before := c.logged("hourly", "gateway Waking")
	wait := time.Until(time.Now().Truncate(time.Hour).Add(time.Hour))
	c.service.Set(wait - 3*time.Second)
	eventually(t, 60*time.Second, "it wakes at the full hour", func() bool { return c.logged("hourly", "gateway Waking") == before+1 })
	eventually(t, 60*time.Second, "it pauses again", idle)
	c.service.Set(wait - 30*time.Minute)
	time.Sleep(3 * time.Second)
	if n := c.logged("hourly", "gateway Waking"); n != before+1 {
		t.Errorf("half an hour before the full one it woke %d times", n-before-1)
	}
	c.service.Set(0)
}

// checkAutoPause looks whether the time to the pause is that which goes by, whatever the clock
// says meanwhile.
func (c *clocks) checkAutoPause(t *testing.T) {
	t.Helper()
	if err := askFor(t.Context(), c.api, "busy", "select 1"); err != nil {
		t.Error(err)
	}
	begun := time.Now()
	c.service.Set(time.Hour)
	for c.state("busy") == core.GatewayRunning && time.Since(begun) < 8*time.Second {
		time.Sleep(100 * time.Millisecond)
	}
	if d := time.Since(begun); d < 8*time.Second {
		t.Errorf("with the clock an hour on it paused after %v, want 20 s", d)
	}
	c.service.Set(-time.Hour)
	eventually(t, 60*time.Second, "it pauses with the clock an hour back", func() bool { return c.state("busy") == core.GatewayPaused })
	c.service.Set(0)
}

// state returns a gateway's state.
func (c *clocks) state(name string) core.GatewayState {
	raw, err := c.api.Get(context.Background(), "gateways", name)
	if err != nil {
		return ""
	}
	var out struct {
		Status struct{ State core.GatewayState }
	}
	if err := json.Unmarshal(raw, &out); err != nil {
		return ""
	}
	return out.Status.State
}
