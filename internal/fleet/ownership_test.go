package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/placement"
	"github.com/sluice-gateway/sluice/internal/store"
	"github.com/sluice-gateway/sluice/internal/store/sqlite"
	"github.com/sluice-gateway/sluice/internal/testseed"
)

// rests is how long addresses rest in these tests, in the time that they keep themselves.
const rests = time.Minute

// world is a fleet on a real store, with machines that lag, die and come back, under a
// clock and a chance of its own.
type world struct {
	t        *testing.T
	seed     uint64
	random   *rand.Rand
	now      atomic.Int64
	path     string
	store    *sqlite.Store
	fleet    *Fleet
	failing  atomic.Bool // Writes don't commit
	machines []*machine
	seen     map[netip.Addr]core.Lease // of each address the lease that was seen last
	ended    map[netip.Addr]time.Time  // when it was seen to be at rest
	trace    []string
	done     map[string]int
}

// machine is a host and what really exists on it.
type machine struct {
	name    string
	session *session // nil: not connected
	goals   []core.GoalState
	goal    *core.GoalState
	here    map[string]core.GoalMember
	told    []core.HostReport
}

// failing is a real store of which Writes fail at their end when the world wants it.
type failing struct {
	store.Store
	world *world
}

func (s failing) Write(ctx context.Context, fn func(store.Tx) error) error {
	return s.Store.Write(ctx, func(tx store.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		if s.world.failing.Load() {
			return errs.New(errs.Internal, "the power fails before the commit")
		}
		return nil
	})
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 7)), path: filepath.Join(t.TempDir(), "s.db"),
		seen: map[netip.Addr]core.Lease{}, ended: map[netip.Addr]time.Time{}, done: map[string]int{},
	}
	w.now.Store(time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC).UnixNano())
	for _, name := range []string{"h1", "h2"} {
		w.machines = append(w.machines, &machine{name: name, here: map[string]core.GoalMember{}})
	}
	w.open()
	r := &rig{t: t, store: w.store}
	r.write(func(tx store.Tx) error {
		set := []core.Stored{{UID: "v1", Spec: &core.VirtualNetwork{
			Name: "corp", AddressSpace: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")},
			Subnets: []core.Subnet{{Name: "gateways", Prefix: netip.MustParsePrefix("10.20.0.0/29"), Delegation: core.DelegationGateways}},
		}}}
		for i := range 3 {
			set = append(set, core.Stored{UID: fmt.Sprintf("g%d", i), Spec: &core.Gateway{Name: fmt.Sprintf("gw%d", i), VNet: "corp", Subnet: "gateways"}})
		}
		for _, s := range set {
			s.Tenant, s.Version, s.CreatedAt, s.UpdatedAt = tenant, 1, w.clock(), w.clock()
			if err := tx.PutResource(s); err != nil {
				return err
			}
		}
		return nil
	})
	t.Cleanup(w.kill)
	return w
}

func (w *world) clock() time.Time { return time.Unix(0, w.now.Load()).UTC() }

func (w *world) open() {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	st, err := sqlite.Open(context.Background(), sqlite.Options{Path: w.path, Logger: log, Now: w.clock})
	if err != nil {
		w.t.Fatal(err)
	}
	w.store = st
	w.fleet, err = New(context.Background(), Options{
		Store: failing{st, w}, Logger: log, Disconnect: func(string, int64) {}, Now: w.clock,
		WakeTimeout: 1000 * time.Hour, Quarantine: rests, LeaseTime: rests,
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// kill ends the service as a crash would: what it had not written is lost.
func (w *world) kill() {
	w.fleet.stop()
	w.fleet.wg.Wait()
	if err := w.store.Close(); err != nil {
		w.t.Error(err)
	}
	for _, m := range w.machines {
		m.session, m.goals = nil, nil
	}
}

// act is something that may happen, and how often. do is false if there was nothing to do.
type act struct {
	often int
	do    func(m *machine) (string, bool)
}

func (w *world) acts() []act {
	of := func(what string, do func(*machine) bool) func(*machine) (string, bool) {
		return func(m *machine) (string, bool) { return m.name + " " + what, do(m) }
	}
	rarely := func(do func(*machine) bool) func(*machine) bool {
		return func(m *machine) bool { return w.random.IntN(5) == 0 && do(m) }
	}
	return []act{
		{8, func(*machine) (string, bool) { return w.place() }},
		{4, func(*machine) (string, bool) { return w.remove() }},
		{8, of("is sent a goal", w.fetch)},
		{8, of("takes a goal", w.obey)},
		{8, of("injects", w.inject)},
		{8, of("tears down", w.tearDown)},
		{10, of("reports", w.report)},
		{3, of("reports again what it has once", w.replay)},
		{4, of("connects", w.connect)},
		{1, of("disconnects", w.disconnect)},
		{1, of("restarts its process", rarely(w.restartHost))},
		{1, of("reboots", rarely(w.reboot))},
		{1, of("is lost, its leases are released by force", rarely(w.lose))},
		{1, of("watches the service crash", rarely(func(*machine) bool { w.kill(); w.open(); return true }))},
		{1, of("sees writes fail", rarely(func(*machine) bool { w.failing.Store(true); return true }))},
		{2, of("sees writes succeed", func(*machine) bool { return w.failing.Swap(false) })},
		{3, of("waits", func(*machine) bool { w.now.Add(int64(time.Duration(w.random.IntN(40)) * time.Second)); return true })},
		{1, of("sees a purge", func(*machine) bool { w.fleet.purge(w.clock()); return true })},
		{1, of("sees renewals stored", func(*machine) bool { w.fleet.renew(context.Background()); return true })},
	}
}

// step lets one thing happen.
func (w *world) step(acts []act) {
	total := 0
	for _, a := range acts {
		total += a.often
	}
	n := w.random.IntN(total)
	m := w.machines[w.random.IntN(len(w.machines))]
	for _, a := range acts {
		if n -= a.often; n >= 0 {
			continue
		}
		what, did := a.do(m)
		w.done[fmt.Sprint(did)]++
		if did {
			w.trace = append(w.trace, fmt.Sprintf("%s %s", w.clock().Format(time.TimeOnly), what))
		}
		return
	}
}

func (w *world) place() (string, bool) {
	i := w.random.IntN(3)
	m, err := w.fleet.place(context.Background(), GatewayRef{Tenant: tenant, Name: fmt.Sprintf("gw%d", i), UID: fmt.Sprintf("g%d", i)})
	if err != nil {
		return "place", false
	}
	return fmt.Sprintf("place %s at %s on %s", m.ID, m.Address, m.Host), true
}

func (w *world) remove() (string, bool) {
	members := w.fleet.Members("")
	if len(members) == 0 {
		return "remove", false
	}
	m := w.fleet.live[members[w.random.IntN(len(members))].ID]
	if m.State == core.MemberLeaving {
		return "remove", false
	}
	return "remove " + m.ID, w.fleet.remove(context.Background(), m, "test") == nil
}

func (w *world) connect(m *machine) bool {
	if m.session != nil {
		return false
	}
	m.session = &session{info: core.Host{Name: m.name, Connected: true}, kick: make(chan struct{}, 1)}
	w.fleet.mu.Lock()
	w.fleet.hosts[m.name] = m.session
	w.fleet.mu.Unlock()
	return true
}

func (w *world) disconnect(m *machine) bool {
	if m.session == nil {
		return false
	}
	w.fleet.mu.Lock()
	delete(w.fleet.hosts, m.name)
	w.fleet.mu.Unlock()
	m.session, m.goals = nil, nil
	return true
}

func (w *world) fetch(m *machine) bool {
	if m.session == nil {
		return false
	}
	goal, err := w.fleet.goal(context.Background(), m.name)
	if err != nil {
		w.t.Fatal(err)
	}
	m.goals = append(m.goals, goal)
	return true
}

func (w *world) obey(m *machine) bool {
	if len(m.goals) == 0 {
		return false
	}
	m.goal, m.goals = &m.goals[0], m.goals[1:]
	return true
}

func (m *machine) wants() map[string]core.GoalMember {
	out := map[string]core.GoalMember{}
	if m.goal != nil {
		for _, g := range m.goal.Members {
			out[key(g.ID, g.Generation)] = g
		}
	}
	return out
}

func (w *world) inject(m *machine) bool {
	for k, g := range m.wants() {
		if _, here := m.here[k]; !here {
			m.here[k] = g
			return true
		}
	}
	return false
}

func (w *world) tearDown(m *machine) bool {
	wanted := m.wants()
	for k := range m.here {
		if _, ok := wanted[k]; !ok && m.goal != nil {
			delete(m.here, k)
			return true
		}
	}
	return false
}

func (w *world) report(m *machine) bool {
	if m.session == nil {
		return false
	}
	r := core.HostReport{Host: m.name}
	if m.goal != nil {
		r.Version, r.Complete = m.goal.Version, true
	}
	if w.random.IntN(5) == 0 { // it could not list what it runs
		w.fleet.report(context.Background(), m.session, core.HostReport{Host: m.name, Version: r.Version})
		return true
	}
	for _, g := range m.here {
		r.Members = append(r.Members, core.ObservedMember{ID: g.ID, Generation: g.Generation, Present: true, Running: true})
	}
	m.told = append(m.told, r)
	w.fleet.report(context.Background(), m.session, r)
	return true
}

func (w *world) replay(m *machine) bool {
	if len(m.told) == 0 || m.session == nil {
		return false
	}
	w.fleet.report(context.Background(), m.session, m.told[w.random.IntN(len(m.told))])
	return true
}

// restartHost loses what the process knew; its members stay.
func (w *world) restartHost(m *machine) bool {
	w.disconnect(m)
	m.goal = nil
	return true
}

func (w *world) reboot(m *machine) bool {
	w.restartHost(m)
	clear(m.here)
	return true
}

// lose is a machine whose members are gone for good, as an administrator knows.
func (w *world) lose(m *machine) bool {
	if w.failing.Load() {
		return false
	}
	w.reboot(m)
	m.told = nil // it is another machine by the same name from now on
	leases, err := w.fleet.Leases(context.Background(), tenant)
	if err != nil {
		w.t.Fatal(err)
	}
	released := false
	for _, l := range leases {
		if l.Host != m.name || l.Ended() {
			continue
		}
		released = true
		if err := w.fleet.Release(context.Background(), l, "lost", func(store.Tx, core.Lease) error { return nil }); err != nil {
			w.fatalf("release %s: %v", l.Address, err)
		}
	}
	return released
}

func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	from := max(0, len(w.trace)-40)
	for _, line := range w.trace[from:] {
		w.t.Log(line)
	}
	w.t.Fatalf("SLUICE_SEED=%d: %s", w.seed, fmt.Sprintf(format, args...))
}

// check holds what must be true at every moment.
func (w *world) check() {
	w.t.Helper()
	w.fleet.placing.Lock() // the fleet replaces by itself what was lost
	defer w.fleet.placing.Unlock()
	rows := map[netip.Addr]core.Lease{}
	err := w.store.Read(context.Background(), func(tx store.Tx) error {
		all, err := tx.ListLeases(tenant)
		for _, l := range all {
			rows[l.Address] = l
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	holders := map[netip.Addr]string{}
	for _, m := range w.machines {
		for k, g := range m.here {
			if other, taken := holders[g.Address]; taken {
				w.fatalf("%s is had by %s and by %s", g.Address, other, k)
			}
			holders[g.Address] = k
			if l := rows[g.Address]; l.Ended() || key(l.Member, l.Generation) != k {
				w.fatalf("%s exists with %s, whose lease is %+v", k, g.Address, l)
			}
		}
	}
	for a, l := range rows {
		before, known := w.seen[a]
		if known && (before.Member != l.Member || before.Generation != l.Generation) {
			w.done["changes of owner"]++
			if !before.Ended() || l.AcquiredAt.Before(w.ended[a].Add(rests)) {
				w.fatalf("%s went from %+v to %+v", a, before, l)
			}
		}
		if l.Ended() && !before.Ended() {
			w.ended[a] = w.clock()
		}
		w.seen[a] = l
	}
	w.checkIndex(rows)
	w.fleet.checkUnsettled(w.t, w.seed)
}

// checkUnsettled compares the fleet's index of members that need attention with all of them.
func (f *Fleet) checkUnsettled(t *testing.T, about any) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	want := map[*member]bool{}
	for _, m := range f.live {
		if m.State != core.MemberLeaving && (m.State != core.MemberReady || m.condemned != "" || m.retiring != "") {
			want[m] = true
		}
	}
	if !maps.Equal(want, f.unsettled) {
		t.Fatalf("%v: %d members need attention, %d do by the index", about, len(want), len(f.unsettled))
	}
}

// checkIndex compares the fleet's index of addresses with the store.
func (w *world) checkIndex(rows map[netip.Addr]core.Lease) {
	w.t.Helper()
	if w.fleet.spaces == nil {
		return
	}
	for k, sp := range w.fleet.spaces.subnets {
		for a := placement.FirstAddress(k.prefix); k.prefix.Contains(a.Next()); a = a.Next() {
			l, row := rows[a]
			taken := row && (!l.Ended() || w.clock().Before(l.ReusableAt))
			next, ok := sp.pool.Next(a.Prev(), w.clock())
			if free := ok && next == a; free == taken {
				w.fatalf("the index says that %s is free: %v; the store has %+v", a, free, l)
			}
		}
	}
}

// TestOneOwnerWhateverHappens: members come and go on machines that lag, die and come
// back, reports come late and again, the service crashes, writes fail: an address has
// one owner at a time, in the store and on the machines, and rests between two.
func TestOneOwnerWhateverHappens(t *testing.T) {
	t.Parallel()
	first := testseed.Of(t)
	seeds := []uint64{first, first + 1}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, seed)
			for acts := w.acts(); len(w.trace) < 1200; {
				w.step(acts)
				w.check()
			}
			w.settle()
		})
	}
}

// settle ends all members the orderly way: nothing may be left but addresses at rest.
func (w *world) settle() {
	w.t.Helper()
	w.failing.Store(false)
	for range 3 {
		for _, m := range w.machines {
			w.connect(m)
		}
		for _, row := range w.fleet.Members("") {
			if err := w.fleet.remove(context.Background(), w.fleet.live[row.ID], "the end"); err != nil {
				w.fatalf("remove: %v", err)
			}
		}
		for _, m := range w.machines {
			m.goals = nil
			w.fetch(m)
			w.obey(m)
			for w.tearDown(m) {
			}
			w.say(m)
		}
		w.check()
	}
	leases, err := w.fleet.Leases(context.Background(), tenant)
	for _, l := range leases {
		if !l.Ended() {
			err = errors.Join(err, fmt.Errorf("%s is still %s: %s", l.Address, l.State, l.Reason))
		}
	}
	if err != nil {
		w.fatalf("%v", err)
	}
	w.t.Logf("%v", w.done)
	if w.done["changes of owner"] < 10 {
		w.t.Errorf("too little happened: %v", w.done)
	}
}

// What a connection of a host says that another one has replaced counts for nothing.
func TestReportOfAReplacedConnection(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", func(h *scripted) { h.keep = true })
	r.wake("a test asked")
	m := r.ready()[0]
	r.fleet.Abandon(corpBI.Name, tenant, "a test asked")
	leaves := func() bool {
		all := r.fleet.Members(tenant)
		return len(all) == 1 && all[0].State == core.MemberLeaving && !r.fleet.Behind(t.Context(), "h")
	}
	r.eventually("it leaves", leaves)
	gone := core.HostReport{Host: "h", Version: 1 << 40, Complete: true}
	r.fleet.report(t.Context(), &session{info: core.Host{Name: "h"}}, gone)
	if !leaves() {
		t.Errorf("member %s was confirmed to be gone by a connection that is over", m.ID)
	}
}
