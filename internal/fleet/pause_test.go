package fleet

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

func TestPauseQuarantinesTheAddress(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	wake := func() netip.Addr {
		g := r.acquire()
		g.Release()
		return g.Member.Address
	}
	first := wake()
	r.pause("test")
	leases := r.leases()
	if len(leases) != 1 || leases[0].State != core.LeaseQuarantined {
		t.Fatalf("after the pause: %+v, want one quarantined lease", leases)
	}
	seen := map[netip.Addr]bool{first: true}
	for range 2 { // a /29 has three addresses
		a := wake()
		if seen[a] {
			t.Fatalf("address %s was leased again in its quarantine", a)
		}
		seen[a] = true
		r.pause("test")
	}
	if _, err := r.fleet.Acquire(within(t, 10*time.Second), corpBI); errs.ClassOf(err) != errs.Exhausted {
		t.Fatalf("with every address in quarantine: %v, want class exhausted", err)
	}
}

func TestPauseCutsQueriesAfterTheDrain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	g := r.acquire()
	defer g.Release()
	begun := time.Now()
	r.pause("test")
	if took := time.Since(begun); took < 300*time.Millisecond {
		t.Errorf("the pause took %s: it did not wait for the query in flight", took)
	}
}

func TestQueriesWaitForAPause(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	g := r.acquire()
	paused := make(chan error, 1)
	go func() { paused <- r.fleet.Pause(within(t, 5*time.Second), corpBI, "test") }()
	r.eventually("it drains", func() bool {
		r.fleet.mu.Lock()
		defer r.fleet.mu.Unlock()
		return r.fleet.pausing["g1"] != nil
	})
	second := make(chan Grant, 1)
	go func() {
		g2, err := r.fleet.Acquire(within(t, 5*time.Second), corpBI)
		if err != nil {
			t.Error(err)
		}
		second <- g2
	}()
	time.Sleep(50 * time.Millisecond)
	if n := len(r.fleet.Members(tenant)); n != 1 {
		t.Errorf("%d members at once during the pause of a gateway of at most one", n)
	}
	g.Release()
	if err := <-paused; err != nil {
		t.Fatal(err)
	}
	g2 := <-second
	defer g2.Release()
	if g2.Member.ID == g.Member.ID {
		t.Error("the query was given the member that was paused")
	}
}

func TestPauseDuringAWakeCostsNoQuery(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.host("h", func(h *scripted) { h.noDial = true })
	res := make(chan error, 1)
	go func() {
		g, err := r.fleet.Acquire(within(t, 10*time.Second), corpBI)
		if err == nil {
			g.Release()
		}
		res <- err
	}()
	r.eventually("placed", func() bool { return len(r.fleet.Members(tenant)) == 1 })
	h.mu.Lock()
	h.noDial = false
	h.mu.Unlock()
	r.pause("paused")
	if err := <-res; err != nil {
		t.Errorf("the query that waited: %v", err)
	}
}

func TestWakeThatAPauseEndsPlacesNothingMeanwhile(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.host("h", func(h *scripted) { h.noDial = true })
	if _, err := r.fleet.place(t.Context(), corpBI); err != nil {
		t.Fatal(err)
	}
	r.eventually("placed", func() bool { return len(r.fleet.Members(tenant)) == 1 })
	res := make(chan error, 1)
	go func() { // joins the member that is on its way
		g, err := r.fleet.Acquire(within(t, 10*time.Second), corpBI)
		if err == nil {
			g.Release()
		}
		res <- err
	}()
	r.eventually("a wake waits", func() bool {
		r.fleet.mu.Lock()
		defer r.fleet.mu.Unlock()
		return r.fleet.wakes["g1"] != nil
	})
	time.Sleep(20 * time.Millisecond)
	first.mu.Lock()
	first.noDial, first.keep = false, true // the pause lasts: nothing is torn down
	first.mu.Unlock()
	_ = r.fleet.Pause(within(t, 300*time.Millisecond), corpBI, "test")
	first.mu.Lock()
	injected := first.injected
	first.mu.Unlock()
	if injected != 1 {
		t.Errorf("%d members were injected while the gateway was being paused, want 1", injected)
	}
	if err := <-res; err != nil {
		t.Errorf("the query that waited: %v", err)
	}
}
