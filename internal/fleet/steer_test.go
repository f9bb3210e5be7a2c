package fleet

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

// spec changes what corp-bi should be, as an apply does.
func (r *rig) spec(change func(*core.Gateway)) {
	r.t.Helper()
	r.write(func(tx store.Tx) error {
		s, err := tx.GetResource(tenant, core.KindGateway, corpBI.Name)
		if err != nil {
			return err
		}
		change(s.Spec.(*core.Gateway))
		s.Version++
		return tx.PutResource(s)
	})
	r.fleet.Push()
}

// ready returns the members that take queries.
func (r *rig) ready() (out []core.Member) {
	for _, m := range r.fleet.Members(tenant) {
		if m.State == core.MemberReady {
			out = append(out, m)
		}
	}
	return out
}

func (r *rig) state() core.GatewayState { return r.fleet.Life(corpBI.UID).State }

// reasonOf returns the reason of the newest change of a kind.
func (r *rig) reasonOf(of, change string) string {
	r.t.Helper()
	lines, reasons := r.history(of)
	for i := len(lines) - 1; i >= 0; i-- {
		if lines[i] == change {
			return reasons[i]
		}
	}
	r.t.Errorf("there is no %q in %q", change, lines)
	return ""
}

func TestAutoPause(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	r.spec(func(g *core.Gateway) { g.AutoPause = core.Duration(50 * time.Millisecond) })
	g := r.acquire()
	for range 3 { // ticks
		r.fleet.steer()
		time.Sleep(30 * time.Millisecond)
	}
	if s := r.state(); s != core.GatewayRunning {
		t.Errorf("with a query in flight it is %s", s)
	}
	g.Release()
	r.eventually("paused", func() bool { return r.state() == core.GatewayPaused && len(r.fleet.Members(tenant)) == 0 })
	if why := r.reasonOf(core.TransitionOfGateway, "Draining -torn down-> Paused"); why != "no query for 50ms" {
		t.Errorf("because of %q", why)
	}
	if _, err := r.fleet.Acquire(within(t, 10*time.Second), corpBI); err != nil {
		t.Errorf("the next query: %v", err)
	}
}

// What a gateway allows its classes is known without a query of each.
func TestSlotsFollowTheGateway(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	r.admit("ann").Release()
	slots := func() [2]int {
		d := r.fleet.Demand(corpBI.UID)
		return [2]int{d[core.ClassInteractive].Slots, d[core.ClassRefresh].Slots}
	}
	r.spec(func(g *core.Gateway) { g.Classes.Refresh.Concurrency = 2 })
	r.eventually("the slots of a class that nobody has asked for", func() bool { return slots()[1] == 2 })
	r.spec(func(g *core.Gateway) { g.Classes.Interactive.Concurrency, g.Classes.Refresh.Concurrency = 4, 3 })
	r.eventually("the new slots of both", func() bool { return slots() == [2]int{4, 3} })
}

func TestAutoPauseNever(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	r.spec(func(g *core.Gateway) { g.AutoPause = core.Never })
	r.wake("a test asked")
	r.fleet.mu.Lock()
	r.fleet.lives[corpBI.UID].lastUsed = time.Now().Add(-1000 * time.Hour)
	r.fleet.mu.Unlock()
	r.fleet.steer()
	if s := r.state(); s != core.GatewayRunning {
		t.Errorf("it is %s", s)
	}
}

func TestMinIsKeptUp(t *testing.T) {
	t.Parallel()
	r := tunedRig(t, func(o *Options) { o.Quarantine = time.Nanosecond })
	h := r.host("h", nil)
	r.spec(func(g *core.Gateway) {
		g.Members, g.AutoPause = core.MemberRange{Min: 2, Max: 3}, core.Duration(time.Millisecond)
	})
	r.eventually("two members without any query", func() bool { return len(r.ready()) == 2 })
	lost := r.ready()[0]
	h.say(lost, "exit status 9")
	r.eventually("another in its place", func() bool {
		ready := r.ready()
		return len(ready) == 2 && ready[0].ID != lost.ID && ready[1].ID != lost.ID
	})
	r.pause("a test asked")
	r.fleet.steer()
	if s := r.state(); s != core.GatewayPaused {
		t.Errorf("after a pause on command it is %s", s)
	}
	r.close()
	r.open()
	r.host("h", nil)
	r.fleet.steer()
	if s := r.state(); s != core.GatewayPaused {
		t.Errorf("after a restart of the service it is %s", s)
	}
	r.wake("a test asked again")
	r.eventually("two members again", func() bool { return len(r.ready()) == 2 })
}

func TestALostMemberIsReplaced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.host("h", nil)
	r.wake("a test asked")
	m := r.ready()[0]
	h.say(m, "out of memory: the limit is 64 MiB")
	r.eventually("another member", func() bool { ready := r.ready(); return len(ready) == 1 && ready[0].ID != m.ID })
	for _, change := range []string{"Running -drain begun-> Draining", "Draining -wake requested-> Waking"} {
		if why := r.reasonOf(core.TransitionOfGateway, change); !strings.Contains(why, m.ID) || !strings.Contains(why, "out of memory") {
			t.Errorf("%s because of %q", change, why)
		}
	}
}

func TestAMemberThatHangsIsReplaced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	r.wake("a test asked")
	m := r.ready()[0]
	r.fleet.TunnelDown(m.ID, m.Generation, fmt.Errorf("control connection: %w", os.ErrDeadlineExceeded))
	r.eventually("another member", func() bool { ready := r.ready(); return len(ready) == 1 && ready[0].ID != m.ID })
	if fate := r.fleet.Fate(within(t, 10*time.Second), m.ID, m.Generation); !strings.Contains(fate, "missed its heartbeats") {
		t.Errorf("its fate is %q", fate)
	}
}

func TestAMemberIsNotGivenUpWithItsHost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.host("h", nil)
	r.wake("a test asked")
	m := r.ready()[0]
	h.conn.Close()
	r.eventually("the host is away", func() bool { return len(r.fleet.Hosts()) == 0 })
	r.fleet.TunnelDown(m.ID, m.Generation, os.ErrDeadlineExceeded)
	r.fleet.TunnelUp(m.ID, m.Generation)
	if ready := r.ready(); len(ready) != 1 || ready[0].ID != m.ID {
		t.Errorf("ready: %+v", ready)
	}
}

// Queries run all the time while every member is replaced by one of another size.
func TestRollingReplacement(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	r.spec(func(g *core.Gateway) { g.Members = core.MemberRange{Min: 1, Max: 1} })
	r.eventually("a member", func() bool { return len(r.ready()) == 1 })
	old := r.ready()[0]

	stop := r.load(t, 4)
	r.spec(func(g *core.Gateway) { g.Size = core.MemberSize{CPUs: 1, MemoryMiB: 512} })
	r.eventually("only the new one is left", func() bool {
		all := r.fleet.Members(tenant)
		return len(all) == 1 && all[0].ID != old.ID && all[0].State == core.MemberReady
	})
	stop()
	if size := r.ready()[0].Size; size.MemoryMiB != 512 {
		t.Errorf("its size is %+v", size)
	}
	lines, _ := r.history(core.TransitionOfGateway)
	if last := lines[len(lines)-1]; last != "Waking -member ready-> Running" {
		t.Errorf("the gateway's history: %q", lines)
	}
	if why := r.reasonOf(core.TransitionOfMember, "draining -dismissed-> leaving"); !strings.Contains(why, "512 MiB") {
		t.Errorf("the old one left because of %q", why)
	}
}

func TestGrowsAndShrinksWithItsQueries(t *testing.T) {
	t.Parallel()
	r := tunedRig(t, func(o *Options) { o.ShrinkAfter = 50 * time.Millisecond })
	r.host("h", nil)
	r.spec(func(g *core.Gateway) { g.Members = core.MemberRange{Max: 2} })
	var grants []Grant
	for range 14 {
		g, err := r.fleet.Admit(within(t, 10*time.Second), Request{
			Gateway: corpBI, Class: core.ClassInteractive, Limits: core.DefaultLimits(core.ClassInteractive), User: "u", Source: "s",
		})
		if err != nil {
			t.Fatal(err)
		}
		grants = append(grants, g)
	}
	r.eventually("two members", func() bool { return len(r.ready()) == 2 })
	for _, g := range grants {
		g.Release()
	}
	r.eventually("one member again", func() bool { return len(r.fleet.Members(tenant)) == 1 })
	if why := r.reasonOf(core.TransitionOfMember, "draining -dismissed-> leaving"); why != "1 of 2 members have been enough for 50ms" {
		t.Errorf("because of %q", why)
	}
}

func TestAMemberThatCannotBePlacedIsSaid(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	r.spec(func(g *core.Gateway) { g.Members = core.MemberRange{Min: 4, Max: 4} }) // the subnet has three addresses
	r.eventually("three members, and the reason", func() bool {
		return len(r.ready()) == 3 && strings.Contains(r.fleet.Life(corpBI.UID).Problem, "has no free address")
	})
}

func TestSchedule(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	r.spec(func(g *core.Gateway) {
		g.Schedule = []core.ScheduledAct{{Cron: "0 7 * * *", Action: core.ScheduleWake}, {Cron: "0 19 * * *", Action: core.SchedulePause}}
	})
	r.fleet.steer()
	at := func(hour int) { // the clock of the schedules stands there since a minute
		now := time.Now().UTC()
		due := time.Date(now.Year(), now.Month(), now.Day(), hour, 0, 0, 0, time.UTC)
		r.fleet.mu.Lock()
		defer r.fleet.mu.Unlock()
		r.ahead.Store(int64(due.Sub(now)))
		r.fleet.checked = due.Add(-time.Minute)
	}
	at(7)
	r.eventually("woken", func() bool { return r.state() == core.GatewayRunning })
	if why := r.reasonOf(core.TransitionOfGateway, "Paused -wake requested-> Waking"); why != `its schedule: wake at "0 7 * * *", UTC` {
		t.Errorf("woken because of %q", why)
	}
	g := r.acquire()
	at(19)
	r.fleet.steer()
	if s := r.state(); s != core.GatewayRunning {
		t.Errorf("with a query in flight it is %s", s)
	}
	g.Release()
	r.eventually("paused", func() bool { return r.state() == core.GatewayPaused })
	if why := r.fleet.Life(corpBI.UID).Reason; why != `its schedule: pause at "0 19 * * *", UTC` {
		t.Errorf("paused because of %q", why)
	}
}

func TestAScheduleThatWasMissedIsMadeUpFor(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	due := time.Now().UTC().Add(-time.Hour)
	r.spec(func(g *core.Gateway) {
		g.Schedule = []core.ScheduledAct{{Cron: fmt.Sprintf("%d %d * * *", due.Minute(), due.Hour()), Action: core.ScheduleWake}}
	})
	r.close()
	r.open() // it looks back to when an earlier process looked last
	r.write(func(tx store.Tx) error {
		return tx.PutSetting(scheduleChecked, due.Add(-time.Hour).Format(time.RFC3339))
	})
	r.close()
	r.open()
	r.host("h", nil)
	r.eventually("woken", func() bool { return r.state() == core.GatewayRunning })
}

func TestAFullHostTakesNoMember(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", func(h *scripted) { h.load = core.HostLoad{CPUs: 2, MemoryMiB: 10_000, AvailableMiB: 500} })
	err := r.fleet.Wake(within(t, 10*time.Second), corpBI, "a test asked")
	if errs.ClassOf(err) != errs.Exhausted || !strings.Contains(err.Error(), "host h has 500 MiB of 10000 MiB of memory available") {
		t.Errorf("got %v", err)
	}
	if l := r.fleet.Life(corpBI.UID); l.State != core.GatewayFailed || l.Reason != err.Error() {
		t.Errorf("it stands as %+v", l)
	}
}

func TestMembersOfAGatewayAreOnDifferentHosts(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("a", nil)
	r.host("b", nil)
	r.eventually("both hosts", func() bool { return len(r.fleet.Hosts()) == 2 })
	r.spec(func(g *core.Gateway) { g.Members = core.MemberRange{Min: 2, Max: 2} })
	r.eventually("two members", func() bool { return len(r.ready()) == 2 })
	if ready := r.ready(); ready[0].Host == ready[1].Host {
		t.Errorf("both are on %s", ready[0].Host)
	}
}
