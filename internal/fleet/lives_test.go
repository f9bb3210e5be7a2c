package fleet

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostapi"
	"github.com/sluice-gateway/sluice/internal/store"
	"github.com/sluice-gateway/sluice/internal/wire"
)

// history returns a gateway's, or its members', changes of state, oldest first, as
// "from -event-> to".
func (r *rig) history(of string) (lines, reasons []string) {
	r.t.Helper()
	all, err := r.fleet.History(context.Background(), store.TransitionFilter{Tenant: tenant, Of: of})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, ts := range all {
		for _, t := range slices.Backward(ts) {
			lines, reasons = append(lines, t.From+" -"+t.Event+"-> "+t.To), append(reasons, t.Reason)
		}
	}
	return lines, reasons
}

func (r *rig) wake(reason string) {
	r.t.Helper()
	if err := r.fleet.Wake(within(r.t.(*testing.T), 10*time.Second), corpBI, reason); err != nil {
		r.t.Fatal(err)
	}
}

func TestHistoryOfAGateway(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	r.wake("a test asked")
	if l := r.fleet.Life(corpBI.UID); l.State != core.GatewayRunning || l.Since.IsZero() || l.Reason != "a member is ready" {
		t.Errorf("it stands as %+v", l)
	}
	r.pause("no longer needed")
	want := []string{
		"Paused -wake requested-> Waking", "Waking -member ready-> Running", "Running -drain begun-> Draining", "Draining -torn down-> Paused",
	}
	check := func() {
		t.Helper()
		lines, reasons := r.history(core.TransitionOfGateway)
		if diff := cmp.Diff(want, lines); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		if diff := cmp.Diff([]string{"a test asked", "a member is ready", "no longer needed", "no longer needed"}, reasons); diff != "" {
			t.Errorf("reasons: -want +got:\n%s", diff)
		}
		lines, _ = r.history(core.TransitionOfMember)
		if first, last := lines[0], lines[len(lines)-1]; first != " -placed-> placed" || last != "leaving -torn down-> gone" {
			t.Errorf("the member's history: %q", lines)
		}
	}
	check()
	r.close()
	r.open()
	check()
	if l := r.fleet.Life(corpBI.UID); l.State != core.GatewayPaused || l.Reason != "no longer needed" {
		t.Errorf("after a restart it stands as %+v", l)
	}
}

func TestAGatewayThatFailsSaysWhy(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.host("h", func(h *scripted) { h.exit = "exit status 7" })
	err := r.fleet.Wake(within(t, 10*time.Second), corpBI, "a test asked")
	if err == nil {
		t.Fatal("woken")
	}
	l := r.fleet.Life(corpBI.UID)
	if l.State != core.GatewayFailed || l.Reason != err.Error() || !strings.Contains(l.Reason, "exit status 7") {
		t.Errorf("after %v it stands as %+v", err, l)
	}
	h.mu.Lock()
	h.exit = ""
	h.mu.Unlock()
	r.wake("try again")
	if l := r.fleet.Life(corpBI.UID); l.State != core.GatewayRunning {
		t.Errorf("then it stands as %+v", l)
	}
}

func TestARestartOfTheServiceIsInTheHistory(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	r.wake("a test asked")
	m := r.fleet.Members(tenant)[0]
	r.close()
	r.open()
	if l := r.fleet.Life(corpBI.UID); l.State != core.GatewayWaking || !strings.Contains(l.Reason, "the service was started again") {
		t.Errorf("after a restart it stands as %+v", l)
	}
	r.fleet.TunnelUp(m.ID, m.Generation)
	if l := r.fleet.Life(corpBI.UID); l.State != core.GatewayRunning {
		t.Errorf("with its member back it stands as %+v", l)
	}
}

// say reports the end of a member.
func (h *scripted) say(m core.Member, exit string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_ = wire.Write(h.conn, hostapi.ToService{Report: &core.HostReport{Host: h.name, Image: h.image, Complete: true, Members: []core.ObservedMember{
		{ID: m.ID, Generation: m.Generation, Present: true, Exit: exit, Image: h.images[m.ID]},
	}}})
}

// A host may be sent a goal state with a new member, and the member dial back, before the one
// who placed it has noted that.
func TestMemberThatIsReadyBeforeItsPlacingIsNoted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	row := core.Member{
		ID: "m-quick", Tenant: tenant, Gateway: corpBI.Name, GatewayUID: corpBI.UID, Host: "h", Generation: 1, State: core.MemberPlaced,
	}
	m := &member{Member: row, since: time.Now()}
	r.fleet.mu.Lock()
	r.fleet.enlist(m)
	r.fleet.mu.Unlock()
	r.fleet.TunnelUp("m-quick", 1)
	r.fleet.mu.Lock()
	r.fleet.settle(m, placedWhere(row))
	r.fleet.mu.Unlock()
	lines, _ := r.history(core.TransitionOfMember)
	if want := []string{" -placed-> placed", "placed -dialled back-> ready"}; !slices.Equal(lines, want) {
		t.Errorf("its history is %q, want %q", lines, want)
	}
}
