package fleet

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

// pair is a gateway of two ready members with twenty slots each.
func pair(t *testing.T) (*rig, []core.Member) {
	t.Helper()
	r := newRig(t)
	r.host("h", nil)
	r.spec(func(g *core.Gateway) { g.Members = core.MemberRange{Min: 2, Max: 2} })
	r.eventually("two members", func() bool { return len(r.ready()) == 2 })
	return r, r.ready()
}

// short asks for a member to run a statement that is answered at once as a rule.
func (r *rig) short() Grant {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req := ask("ann")
	req.Statement, req.Limits.Concurrency = 7, 20
	g, err := r.fleet.Admit(ctx, req)
	if err != nil {
		r.t.Fatal(err)
	}
	return g
}

// shown is what a member's status says.
func (r *rig) shown(id string) (core.MemberState, string) {
	r.t.Helper()
	for _, m := range r.fleet.Members(tenant) {
		if m.ID == id {
			return m.State, m.Reason
		}
	}
	r.t.Fatalf("member %s is not there", id)
	return "", ""
}

func TestASilentMemberIsTheLastResort(t *testing.T) {
	t.Parallel()
	r, members := pair(t)
	silent, other := members[0], members[1]
	r.fleet.TunnelSilent(silent.ID, silent.Generation+1, true)
	if state, _ := r.shown(silent.ID); state != core.MemberReady {
		t.Errorf("another generation's silence makes it %s", state)
	}
	r.fleet.TunnelSilent(silent.ID, silent.Generation, true)
	if state, why := r.shown(silent.ID); state != core.MemberSuspect || why != heartbeatOverdue {
		t.Errorf("it is shown as %s: %q", state, why)
	}
	for range 20 {
		g := r.short()
		defer g.Release()
		if g.Member.ID != other.ID {
			t.Fatal("a query went to the silent member although the other has room")
		}
	}
	g := r.short()
	defer g.Release()
	if g.Member.ID != silent.ID {
		t.Error("the other is full, and still the silent one got nothing")
	}
	r.fleet.TunnelSilent(silent.ID, silent.Generation, false)
	if state, _ := r.shown(silent.ID); state != core.MemberReady {
		t.Errorf("once it is heard it is %s", state)
	}
	if g := r.short(); g.Member.ID != silent.ID {
		t.Error("once it is heard it gets nothing, although it has less to do")
	} else {
		g.Release()
	}
}

// TestADeadTunnelClearsTheSuspicion: what comes after it is another life.
func TestADeadTunnelClearsTheSuspicion(t *testing.T) {
	t.Parallel()
	r, members := pair(t)
	m := members[0]
	r.fleet.TunnelSilent(m.ID, m.Generation, true)
	r.fleet.TunnelDown(m.ID, m.Generation, nil)
	r.fleet.TunnelUp(m.ID, m.Generation)
	if state, why := r.shown(m.ID); state != core.MemberReady {
		t.Errorf("it is shown as %s: %q", state, why)
	}
}

// TestAMemberThatOwesAnAnswerIsTheLastResort: its heartbeats may come as ever.
func TestAMemberThatOwesAnAnswerIsTheLastResort(t *testing.T) {
	t.Parallel()
	r, _ := pair(t)
	for range 3 { // what is typical is learnt
		g := r.short()
		g.Work.Answered()
		g.Release()
	}
	owing := r.short()
	r.ahead.Add(int64(2 * time.Second))
	if state, why := r.shown(owing.Member.ID); state != core.MemberReady {
		t.Errorf("nobody else has answered since, and it is %s: %s", state, why)
	}
	answered := r.short() // goes to the other, which has less to do
	answered.Work.Answered()
	if answered.Member.ID == owing.Member.ID {
		t.Fatal("both went to one member")
	}
	state, why := r.shown(owing.Member.ID)
	if state != core.MemberSuspect || !strings.Contains(why, "waits for 2") {
		t.Errorf("it is shown as %s: %q", state, why)
	}
	for range 4 { // more than the other has to do
		if g := r.short(); g.Member.ID != answered.Member.ID {
			t.Error("a query went to the one that owes an answer")
		} else {
			defer g.Release()
		}
	}
	owing.Work.Answered()
	if state, _ := r.shown(owing.Member.ID); state != core.MemberReady {
		t.Errorf("once it has answered it is %s", state)
	}
	owing.Release()
	answered.Release()
}
