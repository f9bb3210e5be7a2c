package fleet

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostapi"
	"github.com/sluice-gateway/sluice/internal/store"
	"github.com/sluice-gateway/sluice/internal/wire"
)

// report sends a report of the host's own making.
func (h *scripted) report(version int64, problems ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := core.HostReport{Host: h.name, Version: version, Complete: true, Problems: problems}
	for _, m := range h.present {
		r.Members = append(r.Members, core.ObservedMember{ID: m.ID, Generation: m.Generation, Present: true, Running: true})
	}
	if err := wire.Write(h.conn, hostapi.ToService{Report: &r}); err != nil {
		h.rig.t.Error(err)
	}
}

func TestAwaitGoals(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.host("h", nil)
	r.wake("a test asked")
	version := func() (v int64) {
		versions, err := r.fleet.goalVersions(t.Context())
		if err != nil {
			t.Error(err)
		}
		return versions["h"]
	}
	settled := func() bool { return !r.fleet.Behind(t.Context(), "h") }
	r.eventually("the host has acted on the wake", settled)
	h.mu.Lock()
	h.mute = true
	h.mu.Unlock()
	h.report(version(), "an old problem")
	change := func() {
		r.write(func(tx store.Tx) error { return r.fleet.BumpGoals(tx) })
		r.fleet.Push()
	}
	await := func(ctx context.Context) []Acting {
		t.Helper()
		got, err := r.fleet.AwaitGoals(ctx, tenant)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	check := func(when string, got []Acting, want ...Acting) {
		t.Helper()
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", when, d)
		}
	}

	change()
	check("a host that does not act", await(within(t, 2*time.Second)), Acting{Host: "h", Connected: true})
	if settled() {
		t.Error("the host is not behind")
	}
	done := make(chan []Acting)
	go func() { done <- await(within(t, 10*time.Second)) }()
	h.report(version()-1, "an old problem")
	h.report(version(), "an old problem", "a new one")
	check("a host that acts, with a new problem", <-done, Acting{Host: "h", Connected: true, Acted: true, Problems: []string{"a new one"}})
	change()
	h.report(version(), "a new one")
	check("that goes on after the next change", await(within(t, 10*time.Second)), Acting{Host: "h", Connected: true, Acted: true})
	if got, err := r.fleet.AwaitGoals(within(t, 10*time.Second), "another tenant"); err != nil || got != nil {
		t.Errorf("a tenant that runs nothing: %v, %v", got, err)
	}
	change()
	h.conn.Close()
	check("a host that is away", await(within(t, 10*time.Second)), Acting{Host: "h"})
}
