package fleet

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostapi"
	"github.com/sluice-gateway/sluice/internal/store"
)

// calm is a rig that gives up no member while a test plays its host message by message.
func calm(t *testing.T) *rig {
	t.Helper()
	return tunedRig(t, func(o *Options) { o.WakeTimeout = time.Hour })
}

// session connects a host of which the test makes every message.
func (r *rig) session(name string) *session {
	r.t.Helper()
	conn, _ := net.Pipe()
	s := &session{conn: conn, kick: make(chan struct{}, 1), info: core.Host{Name: name, Connected: true}}
	if err := r.fleet.enter(context.Background(), s); err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *rig) place() *member {
	r.t.Helper()
	m, err := r.fleet.place(context.Background(), corpBI)
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

// An address that a host had obtained for a member, and has no more, is not leased to it once
// it is free: by then its server may have given it to anybody.
func TestAnAddressThatItsHostHasLostIsNotLeased(t *testing.T) {
	t.Parallel()
	address := netip.MustParseAddr("10.20.0.5")
	other := core.Lease{Tenant: tenant, VNet: "corp", VNetUID: "v1", Subnet: "gateways", Address: address, Member: "other", Generation: 1}
	for _, tt := range []struct {
		name   string
		loses  func(r *rig, s *session, m *member)
		leased bool
	}{
		{"it has it still", func(*rig, *session, *member) {}, true},
		{"a complete report does not name the member", func(r *rig, s *session, _ *member) {
			r.fleet.report(context.Background(), s, core.HostReport{Host: "h", Version: 1, Complete: true})
		}, false},
		{"the member is gone there", func(r *rig, s *session, m *member) {
			r.fleet.changes(context.Background(), s, hostapi.Changes{Gone: []hostapi.Gone{{ID: m.ID, Generation: m.Generation}}})
		}, false},
		{"another generation is gone there", func(r *rig, s *session, m *member) {
			r.fleet.changes(context.Background(), s, hostapi.Changes{Gone: []hostapi.Gone{{ID: m.ID, Generation: m.Generation - 1}}})
		}, true},
		{"the host is away", func(r *rig, s *session, _ *member) { r.fleet.leave(s) }, false},
		{"the host has come anew", func(r *rig, _ *session, _ *member) { r.session("h") }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := calm(t)
			r.byDHCP()
			s := r.session("h")
			r.write(func(tx store.Tx) error { return tx.AcquireLease(other, time.Now()) })
			m := r.place()
			r.fleet.report(context.Background(), s, core.HostReport{Host: "h", Version: 1, Complete: true, Members: []core.ObservedMember{
				{ID: m.ID, Generation: m.Generation, Present: true, Address: address},
			}})
			tt.loses(r, s, m)
			r.write(func(tx store.Tx) error { return tx.QuarantineLease(other, time.Now().Add(-time.Second), "test") })
			r.fleet.adoptAll(context.Background())
			for _, row := range r.fleet.Members(tenant) {
				if leased := row.Address == address; leased != tt.leased {
					t.Errorf("the member has %v, leased %t", row.Address, tt.leased)
				}
			}
		})
	}
}

// Of two tokens for one member the one counts that its host's connection of now has told,
// whichever is stored last.
func TestATokenOfAReplacedConnection(t *testing.T) {
	t.Parallel()
	r := calm(t)
	r.session("h")
	m := r.place()
	m.joinHash = "new" // nobody else looks at it
	for _, hash := range []string{"new", "old"} {
		r.fleet.storeHashes(context.Background(), map[*member]string{m: hash})
	}
	if !m.joinStored {
		t.Error("the token does not count as stored")
	}
	r.write(func(tx store.Tx) error {
		_, err := tx.UseJoinHash(m.ID, "new")
		return err
	})
}

// holding is a store that lets a Write wait whose context says so.
type holding struct {
	store.Store
	waits, goOn chan struct{}
}

type held struct{}

func (h holding) Write(ctx context.Context, fn func(store.Tx) error) error {
	if ctx.Value(held{}) != nil {
		close(h.waits)
		<-h.goOn
	}
	return h.Store.Write(ctx, fn)
}

// A member that two want to remove, of which one is slow, is gone once and stays so.
func TestAMemberThatIsGoneDoesNotLeaveAgain(t *testing.T) {
	t.Parallel()
	hold := holding{waits: make(chan struct{}), goOn: make(chan struct{})}
	r := tunedRig(t, func(o *Options) {
		hold.Store = o.Store
		o.Store = hold
	})
	r.host("h", nil)
	r.wake("a test asked")
	id := r.ready()[0].ID
	r.fleet.mu.Lock()
	m := r.fleet.live[id]
	r.fleet.mu.Unlock()
	slow := make(chan error, 1)
	go func() {
		slow <- r.fleet.remove(context.WithValue(context.Background(), held{}, true), m, "the slow one")
	}()
	<-hold.waits
	if err := r.fleet.remove(t.Context(), m, "the quick one"); err != nil {
		t.Fatal(err)
	}
	r.eventually("it is gone", func() bool { return len(r.fleet.Members(tenant)) == 0 })
	close(hold.goOn)
	if err := <-slow; err != nil {
		t.Error(err)
	}
	r.write(func(tx store.Tx) error {
		row, err := tx.GetMember(m.ID)
		if row.State != core.MemberGone || row.Reason != "the quick one" {
			t.Errorf("it is %s again: %s", row.State, row.Reason)
		}
		return err
	})
	r.fleet.mu.Lock()
	defer r.fleet.mu.Unlock()
	if len(r.fleet.leaving) != 0 || m.State != core.MemberGone {
		t.Errorf("the fleet waits for its end again: %s", m.State)
	}
}

// A host that was forgotten, or whose service lost what it knew, comes with a version that
// does not exist yet: until the host says another one, that confirms nothing.
func TestAVersionOfAnotherHistoryConfirmsNothing(t *testing.T) {
	t.Parallel()
	r := calm(t)
	h := r.host("h", func(h *scripted) { h.came, h.mute, h.noDial = 4, true, true })
	leave := func() *member { // takes two versions
		m := r.place()
		if err := r.fleet.remove(t.Context(), m, "test"); err != nil {
			t.Fatal(err)
		}
		r.eventually("its host has torn it down", func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			return len(h.goals) > 0 && h.goals[len(h.goals)-1].Version >= m.leavingVersion && len(h.present) == 0
		})
		return m
	}
	gone := func() bool { return len(r.fleet.Members(tenant)) == 0 }
	first := leave()
	h.report(4, "it was heard")
	r.eventually("that is heard", func() bool { return len(r.fleet.Hosts()[0].Problems) == 1 })
	if gone() || !r.fleet.Behind(t.Context(), "h") {
		t.Error("a version that there has not been yet counts")
	}
	h.report(first.leavingVersion)
	r.eventually("the version that it was sent counts", gone)
	if next := leave(); next.leavingVersion != 4 {
		t.Fatalf("the next one leaves in version %d", next.leavingVersion)
	}
	h.report(4)
	r.eventually("now that version counts as well", gone)
}
