package fleet

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

// Queries run all the time while every member is replaced by one that runs another program.
func TestAnotherProgramIsRolledOut(t *testing.T) {
	t.Parallel()
	r := tunedRig(t, func(o *Options) { o.Quarantine = time.Nanosecond })
	h := r.host("h", func(h *scripted) { h.image = "a" })
	r.spec(func(g *core.Gateway) { g.Members = core.MemberRange{Min: 2, Max: 2} })
	r.eventually("two members", func() bool { return len(r.ready()) == 2 && r.run("a") == 2 })
	stop := r.load(t, 4)
	h.install("b")
	r.eventually("two members of the new program", func() bool { return r.run("b") == 2 && len(r.fleet.Members(tenant)) == 2 })
	stop()
	if why := r.reasonOf(core.TransitionOfMember, "draining -dismissed-> leaving"); !strings.HasSuffix(why, ": host h now has program b, not a") {
		t.Errorf("an old one left because of %q", why)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.goals {
		if len(g.Members) > 3 {
			t.Errorf("there were %d members at once", len(g.Members))
		}
	}
	if h.injected != 4 {
		t.Errorf("%d members were started", h.injected)
	}
}

// run counts the members that take queries and run a program.
func (r *rig) run(image string) (n int) {
	for _, m := range r.ready() {
		if m.Image == image {
			n++
		}
	}
	return n
}

// load runs queries until stop; none may fail.
func (r *rig) load(t *testing.T, clients int) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			for ctx.Err() == nil {
				g, err := r.fleet.Acquire(within(t, 10*time.Second), corpBI)
				if err != nil {
					t.Errorf("a query failed: %v", err)
					return
				}
				time.Sleep(time.Millisecond)
				if !r.fleet.Live(g.Member.ID, g.Member.Generation) {
					t.Errorf("member %s went away under a query", g.Member.ID)
				}
				g.Release()
			}
		})
	}
	return func() { cancel(); running.Wait() }
}

// A program that ends at once replaces nothing: what runs stays, the gateway says why, and it is
// tried again after longer and longer waits, or at once with the next program.
func TestAProgramThatDoesNotStart(t *testing.T) {
	t.Parallel()
	r := tunedRig(t, func(o *Options) { o.Quarantine = time.Nanosecond })
	h := r.host("h", func(h *scripted) { h.image, h.broken, h.wrote = "a", "bad", "this is the wrong machine" })
	r.spec(func(g *core.Gateway) { g.Members = core.MemberRange{Min: 1, Max: 1} })
	r.eventually("a member", func() bool { return r.run("a") == 1 })
	old := r.ready()[0].ID
	stop := r.load(t, 2)
	begun := time.Now()
	h.install("bad")
	injected := func() int { h.mu.Lock(); defer h.mu.Unlock(); return h.injected }
	r.eventually("it was tried three times", func() bool { return injected() >= 4 })
	if took := time.Since(begun); took < 3*time.Second {
		t.Errorf("three tries within %v: it must wait for 1 and 2 s", took)
	}
	problem := r.fleet.Life(corpBI.UID).Problem
	for _, part := range []string{"members are to be replaced (host h now has program bad, not a)", "did not come up: exit status 1; it wrote: this is the wrong machine", "those that run stay", "log of host h", "another program"} {
		if !strings.Contains(problem, part) {
			t.Errorf("the problem lacks %q: %s", part, problem)
		}
	}
	if ready := r.ready(); len(ready) != 1 || ready[0].ID != old || r.state() != core.GatewayRunning {
		t.Errorf("the old one should be left: %+v", ready)
	}
	h.install("c")
	r.eventually("the next program is rolled out, nothing is said any more", func() bool {
		return r.run("c") == 1 && len(r.fleet.Members(tenant)) == 1 && r.fleet.Life(corpBI.UID).Problem == ""
	})
	stop()
	r.fleet.mu.Lock()
	defer r.fleet.mu.Unlock()
	if n := r.fleet.lives[corpBI.UID].attempts; n != 0 {
		t.Errorf("%d attempts count as failed: the next replacement would wait", n)
	}
}

// The program that was there before comes back while it is being replaced: what runs it stays.
func TestAProgramThatComesBack(t *testing.T) {
	t.Parallel()
	r := tunedRig(t, func(o *Options) { o.Quarantine = time.Nanosecond })
	h := r.host("h", func(h *scripted) { h.image, h.broken = "a", "bad" })
	r.spec(func(g *core.Gateway) { g.Members = core.MemberRange{Min: 1, Max: 1} })
	r.eventually("a member", func() bool { return r.run("a") == 1 })
	old := r.ready()[0].ID
	h.install("bad")
	r.eventually("it was tried", func() bool { return r.fleet.Life(corpBI.UID).Problem != "" })
	h.install("a")
	r.eventually("the old one is as it should be", func() bool {
		all := r.fleet.Members(tenant)
		return len(all) == 1 && all[0].ID == old && r.fleet.Life(corpBI.UID).Problem == ""
	})
}
