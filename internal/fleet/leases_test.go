package fleet

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostapi"
	"github.com/sluice-gateway/sluice/internal/placement"
	"github.com/sluice-gateway/sluice/internal/store"
	"github.com/sluice-gateway/sluice/internal/wire"
)

// lease returns the one lease that there is, as people see it.
func (w *world) lease() core.Lease {
	w.t.Helper()
	leases, err := w.fleet.Leases(context.Background(), tenant)
	if err != nil || len(leases) != 1 {
		w.t.Fatalf("leases %+v, %v; want one", leases, err)
	}
	return leases[0]
}

// member places a member and has its machine run it, on a goal state that it has taken.
func (w *world) member() *machine {
	w.t.Helper()
	m := w.machines[0]
	w.connect(m)
	if what, ok := w.place(); !ok {
		w.t.Fatal(what)
	}
	w.fetch(m)
	w.obey(m)
	w.inject(m)
	return m
}

// say has a machine report until a report is complete.
func (w *world) say(m *machine) {
	for before := len(m.told); len(m.told) == before; {
		w.report(m)
	}
}

func wantLease(t *testing.T, l core.Lease, state core.LeaseState, words ...string) {
	t.Helper()
	if l.State != state {
		t.Errorf("the lease is %s, want %s: %s", l.State, state, l.Reason)
	}
	for _, w := range words {
		if !strings.Contains(l.Reason, w) {
			t.Errorf("the reason %q lacks %q", l.Reason, w)
		}
	}
}

// TestExpiredLeaseIsShownAndKept: a lease is renewed by its host's reports, expires when
// they stop, and is its owner's all the same until the teardown is confirmed.
func TestExpiredLeaseIsShownAndKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.member()
	wantLease(t, w.lease(), core.LeaseHeld, "host h1 has not confirmed it yet")
	w.now.Add(int64(rests / 2))
	w.say(m)
	if l := w.lease(); !l.ExpiresAt.Equal(w.clock().Add(rests)) || !l.RenewedAt.Equal(w.clock()) {
		t.Errorf("after a report at %s: renewed %s, expires %s", w.clock(), l.RenewedAt, l.ExpiresAt)
	}
	wantLease(t, w.lease(), core.LeaseHeld, "host h1 has the member")
	at := w.clock()
	w.disconnect(m)
	w.now.Add(int64(rests) + 1)
	wantLease(t, w.lease(), core.LeaseExpired, "host h1 has confirmed nothing of it since "+at.Format(time.RFC3339), "stays leased", "administrator")
	for range 2 { // a /29 has two more
		w.connect(w.machines[1])
		if what, ok := w.place(); !ok {
			t.Fatal(what)
		}
	}
	w.now.Add(int64(1000 * time.Hour))
	w.fleet.purge(w.clock())
	if _, ok := w.place(); ok {
		t.Error("an address whose lease had expired was leased again")
	}
	w.connect(m)
	w.say(m)
	leases, _ := w.fleet.Leases(context.Background(), tenant)
	wantLease(t, leases[0], core.LeaseHeld, "host h1 has the member")
}

// TestRenewalOutlivesTheService: what hosts confirmed is written down, but not at every
// report.
func TestRenewalOutlivesTheService(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.member()
	begun := w.clock()
	stored := func() time.Time {
		w.kill()
		w.open()
		w.connect(m)
		return w.lease().ExpiresAt
	}
	w.now.Add(int64(rests / 4))
	w.say(m)
	w.fleet.renew(context.Background())
	if got := stored(); !got.Equal(begun.Add(rests)) {
		t.Errorf("renewed after a quarter of its time, the lease expires at %s: that was worth a write", got)
	}
	w.now.Add(int64(rests / 2))
	w.say(m)
	w.fleet.renew(context.Background())
	if got := stored(); !got.Equal(w.clock().Add(rests)) {
		t.Errorf("after the restart the lease expires at %s, want %s", got, w.clock().Add(rests))
	}
}

// TestLeaseThroughItsEnd follows a lease from the member's leaving to the end of the rest.
func TestLeaseThroughItsEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.member()
	w.say(m)
	w.remove()
	wantLease(t, w.lease(), core.LeaseHeld, "the member leaves (test)", "host h1 has not confirmed its teardown")
	w.fetch(m)
	w.obey(m)
	w.say(m) // it has the member still
	wantLease(t, w.lease(), core.LeaseHeld, "has not confirmed its teardown")
	w.tearDown(m)
	w.say(m)
	free := w.clock().Add(rests)
	wantLease(t, w.lease(), core.LeaseQuarantined, "host h1 confirmed the teardown", "used again at "+free.Format(time.RFC3339))
	if l := w.lease(); !l.ReusableAt.Equal(free) {
		t.Errorf("it rests until %s, want %s", l.ReusableAt, free)
	}
	w.now.Add(int64(rests))
	if leases, err := w.fleet.Leases(context.Background(), tenant); err != nil || len(leases) != 0 {
		t.Errorf("after its rest: %+v, %v", leases, err)
	}
}

// TestClockThatWentBack: a service starts with a clock that is weeks behind what it has stored.
// Leases expire, and addresses rest, for as long as ever from then on.
func TestClockThatWentBack(t *testing.T) {
	t.Parallel()
	back := func(w *world) {
		w.kill()
		w.now.Add(-int64(1000 * time.Hour))
		w.open()
		w.connect(w.machines[0])
	}
	t.Run("a lease that is held", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		m := w.member()
		back(w)
		w.say(m)
		w.fleet.renew(context.Background())
		w.kill()
		w.open()
		if l := w.lease(); !l.ExpiresAt.Equal(w.clock().Add(rests)) {
			t.Errorf("confirmed at %s, the lease expires at %s", w.clock(), l.ExpiresAt)
		}
	})
	t.Run("an address that rests", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		m := w.member()
		w.remove()
		w.fetch(m)
		w.obey(m)
		w.tearDown(m)
		w.say(m)
		back(w)
		for range 2 { // a /29 has two more
			if what, ok := w.place(); !ok {
				t.Fatal(what)
			}
		}
		if _, ok := w.place(); ok {
			t.Error("an address is used again that should rest")
		}
		w.now.Add(int64(rests))
		if what, ok := w.place(); !ok {
			t.Errorf("after its rest the address is not used again: %s", what)
		}
	})
}

// TestReleaseByForce: only of a host that is away, with a record in the same transaction;
// then the address rests as after any end.
func TestReleaseByForce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.member()
	w.say(m)
	recorded := 0
	release := func(record error) error {
		return w.fleet.Release(context.Background(), w.lease(), "released by ann", func(_ store.Tx, l core.Lease) error {
			recorded++
			return record
		})
	}
	if err := release(nil); errs.ClassOf(err) != errs.Conflict || !strings.Contains(errs.As(err).Hint, "pause gateway gw") || recorded != 0 {
		t.Errorf("with the host connected: %v", err)
	}
	w.disconnect(m)
	if err := release(fmt.Errorf("no room for the record")); err == nil {
		t.Error("a release without its record succeeded")
	}
	wantLease(t, w.lease(), core.LeaseHeld, "the member leaves (its lease was released by force)")
	if err := release(nil); err != nil || recorded != 2 {
		t.Fatalf("release: %v, recorded %d times", err, recorded)
	}
	wantLease(t, w.lease(), core.LeaseQuarantined, "released by ann", "used again at")
	if n := len(w.fleet.Members("")); n != 0 {
		t.Errorf("%d members are left", n)
	}
	if err := release(nil); err != nil { // the rest is cut short
		t.Error(err)
	}
	if leases, err := w.fleet.Leases(context.Background(), tenant); err != nil || len(leases) != 0 {
		t.Errorf("after the end of its rest by force: %+v, %v", leases, err)
	}
	w.connect(m)
	w.fetch(m)
	w.obey(m)
	if !w.tearDown(m) || len(m.here) != 0 {
		t.Error("the host that came back is not told to tear the member down")
	}
}

// TestMemberInjectedAgainIsReplacedAtOnce: a host that lost a member and injects it again
// reports another token for it. The generation has joined, so the member can't.
func TestMemberInjectedAgainIsReplacedAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.member()
	report := func(hash string) {
		r := core.HostReport{Host: m.name, Version: m.goal.Version, Complete: true}
		for _, g := range m.here {
			r.Members = append(r.Members, core.ObservedMember{ID: g.ID, Generation: g.Generation, Present: true, Running: true, JoinTokenHash: hash})
		}
		w.fleet.report(context.Background(), m.session, r)
	}
	report("first")
	id := w.fleet.Members("")[0].ID
	if err := w.store.Write(context.Background(), func(tx store.Tx) error { _, err := tx.UseJoinHash(id, "first"); return err }); err != nil {
		t.Fatal(err)
	}
	w.kill() // the token is known to the store alone
	w.open()
	w.connect(m)
	report("first")
	if got := w.fleet.Members("")[0]; got.State == core.MemberLeaving {
		t.Errorf("the member goes though its host has it: %s", got.Reason)
	}
	report("second")
	if got := w.fleet.Members("")[0]; got.State != core.MemberLeaving || !strings.Contains(got.Reason, "injected it again") {
		t.Errorf("the member is %s (%s), want it to leave", got.State, got.Reason)
	}
}

// BenchmarkPlace places a member in a /16 in which many are placed: store, leases and all.
func BenchmarkPlace(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000, 60_000} {
		b.Run(fmt.Sprintf("leases=%d", n), func(b *testing.B) { benchmarkPlace(b, n) })
	}
}

func benchmarkPlace(b *testing.B, n int) {
	r := newBenchRig(b, n)
	for b.Loop() {
		m, err := r.fleet.place(context.Background(), GatewayRef{Tenant: tenant, Name: "bench", UID: "gb"})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := r.fleet.remove(context.Background(), m, "bench"); err != nil {
			b.Fatal(err)
		}
		if err := r.fleet.confirmGone(context.Background(), m, end{reason: "bench"}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkSendGoal is what a whole goal state costs on its way to a host with many members:
// read from the store, sent, and understood. See BenchmarkOneWake for what changes.
func BenchmarkSendGoal(b *testing.B) {
	for _, n := range []int{10, 300, 1_000, 5_000} {
		b.Run(fmt.Sprintf("members=%d", n), func(b *testing.B) {
			r := newBenchRig(b, n)
			size := 0
			for b.Loop() {
				goal, err := r.fleet.goal(context.Background(), "h")
				if err != nil || len(goal.Members) < n {
					b.Fatalf("%d members, %v", len(goal.Members), err)
				}
				var sent bytes.Buffer
				if err := wire.Write(&sent, hostapi.ToHost{Goal: &goal}); err != nil {
					b.Fatal(err)
				}
				size = sent.Len()
				var got hostapi.ToHost
				if err := wire.Read(&sent, &got, 64<<20); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(size)/1000, "kB")
		})
	}
}

// newBenchRig is a fleet with a host that is connected and n members of it in a /16.
func newBenchRig(b *testing.B, n int) *rig {
	r := &rig{t: b, path: filepath.Join(b.TempDir(), "s.db"), tune: func(o *Options) { o.WakeTimeout = time.Hour }}
	r.open()
	prefix := netip.MustParsePrefix("10.20.0.0/16")
	r.write(func(tx store.Tx) error {
		for _, s := range []core.Stored{
			{UID: "vb", Spec: &core.VirtualNetwork{Name: "corp", AddressSpace: []netip.Prefix{prefix}, Subnets: []core.Subnet{{Name: "all", Prefix: prefix, Delegation: core.DelegationGateways}}}},
			{UID: "gb", Spec: &core.Gateway{Name: "bench", VNet: "corp", Subnet: "all"}},
		} {
			s.Tenant, s.Version = tenant, 1
			if err := tx.PutResource(s); err != nil {
				return err
			}
		}
		for i := range n/5 + 1 {
			g := &core.Gateway{Name: fmt.Sprintf("other-%d", i), VNet: "corp", Subnet: "all", Members: core.MemberRange{Min: 5, Max: 5}, AutoPause: core.Never}
			if err := tx.PutResource(core.Stored{UID: fmt.Sprintf("go-%d", i), Tenant: tenant, Version: 1, Spec: g}); err != nil {
				return err
			}
		}
		address, tunnel := placement.FirstAddress(prefix), netip.MustParseAddr("169.254.1.0")
		for i := range n {
			m := core.Member{
				ID: fmt.Sprintf("m-%d", i), Tenant: tenant, Generation: 1, Gateway: fmt.Sprintf("other-%d", i/5), GatewayUID: fmt.Sprintf("go-%d", i/5), VNet: "corp", VNetUID: "vb", Subnet: "all",
				Host: "h", Address: address, TunnelAddress: tunnel, State: core.MemberReady, CreatedAt: time.Now(),
			}
			if err := tx.PutMember(m); err != nil {
				return err
			}
			if err := tx.AcquireLease(r.fleet.newLease(m), m.CreatedAt); err != nil {
				return err
			}
			address, tunnel = address.Next(), tunnel.Next()
		}
		return nil
	})
	r.close() // read anew, as a process that starts does
	r.open()
	r.fleet.mu.Lock()
	r.fleet.hosts["h"] = &session{conn: nowhere(), info: core.Host{Name: "h", Connected: true}, kick: make(chan struct{}, 1)}
	r.fleet.mu.Unlock()
	if _, err := r.fleet.place(context.Background(), GatewayRef{Tenant: tenant, Name: "bench", UID: "gb"}); err != nil {
		b.Fatal(err)
	}
	return r
}

func nowhere() net.Conn { a, _ := net.Pipe(); return a }
