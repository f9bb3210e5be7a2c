package fleet

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

func TestManyQueriesCauseOneWake(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.host("h", nil)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			g, err := r.fleet.Acquire(within(t, 10*time.Second), corpBI)
			if err != nil {
				t.Error(err)
				return
			}
			g.Release()
		})
	}
	wg.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.injected != 1 {
		t.Errorf("%d members were injected, want 1", h.injected)
	}
	if n := len(r.leases()); n != 1 {
		t.Errorf("%d leases, want 1", n)
	}
}

func TestWakePhases(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	g := r.acquire()
	defer g.Release()
	var names []string
	for _, p := range g.Wake {
		names = append(names, p.Name)
	}
	if got, want := strings.Join(names, ","), "leased,injected,dialled back"; got != want {
		t.Errorf("phases %s, want %s", got, want)
	}
	again, err := r.fleet.Acquire(within(t, time.Second), corpBI)
	if err != nil || len(again.Wake) != 0 {
		t.Errorf("a running gateway was woken: %v, %v", again.Wake, err)
	}
	again.Release()
}

func TestMemberThatNeverDialsBackIsRemoved(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", func(h *scripted) { h.noDial = true })
	_, err := r.fleet.Acquire(within(t, 20*time.Second), corpBI)
	if errs.ClassOf(err) != errs.Unavailable || !strings.Contains(fmt.Sprint(err), "did not dial back") {
		t.Fatalf("got %v, want that it did not dial back", err)
	}
	r.eventually("nothing is left", func() bool { return len(r.fleet.Members(tenant)) == 0 })
}

func TestNoHost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, err := r.fleet.Acquire(within(t, 5*time.Second), corpBI)
	if errs.ClassOf(err) != errs.Unavailable || !strings.Contains(fmt.Sprint(err), "no host is connected") {
		t.Fatalf("got %v, want that no host is connected", err)
	}
	if n := len(r.leases()); n != 0 {
		t.Errorf("%d leases were taken for nothing", n)
	}
}

func TestReleaseCountsOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	g := r.acquire()
	g.Release()
	g.Release()
	for _, n := range r.fleet.InFlight("g1") {
		if n != 0 {
			t.Errorf("%d queries in flight", n)
		}
	}
}

func TestClip(t *testing.T) {
	t.Parallel()
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	phases := []core.Phase{{Name: "leased", Duration: ms(2)}, {Name: "injected", Duration: ms(40)}, {Name: "dialled back", Duration: ms(10)}}
	for waited, want := range map[int]string{52: "[{leased 2ms} {injected 40ms} {dialled back 10ms}]", 30: "[{injected 20ms} {dialled back 10ms}]", 5: "[{dialled back 5ms}]"} {
		if got := fmt.Sprint(clip(phases, ms(waited))); got != want {
			t.Errorf("waited %d ms: %s, want %s", waited, got, want)
		}
	}
}
