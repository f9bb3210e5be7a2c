package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostapi"
	"github.com/sluice-gateway/sluice/internal/store"
	"github.com/sluice-gateway/sluice/internal/store/sqlite"
	"github.com/sluice-gateway/sluice/internal/wire"
)

const tenant = core.DefaultTenant

var corpBI = GatewayRef{Tenant: tenant, Name: "corp-bi", UID: "g1"}

// rig is a fleet on a real store, with one host that the test plays.
type rig struct {
	t     testing.TB
	store *sqlite.Store
	fleet *Fleet
	path  string
	ahead atomic.Int64   // how far the fleet's clock is, in nanoseconds
	tune  func(*Options) // of the next fleet
}

func newRig(t *testing.T) *rig { return tunedRig(t, func(*Options) {}) }

func tunedRig(t *testing.T, tune func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, path: filepath.Join(t.TempDir(), "s.db"), tune: tune}
	r.open()
	r.write(func(tx store.Tx) error {
		for _, s := range []core.Stored{
			{UID: "v1", Spec: &core.VirtualNetwork{
				Name: "corp", AddressSpace: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")},
				Subnets: []core.Subnet{{Name: "gateways", Prefix: netip.MustParsePrefix("10.20.0.0/29"), Delegation: core.DelegationGateways}},
			}},
			{UID: "g1", Spec: &core.Gateway{Name: "corp-bi", VNet: "corp", Subnet: "gateways"}},
		} {
			s.Tenant, s.Version, s.CreatedAt, s.UpdatedAt = tenant, 1, time.Now(), time.Now()
			if err := tx.PutResource(s); err != nil {
				return err
			}
		}
		return nil
	})
	r.fleet.Push()
	return r
}

// open makes a fleet on the store's file, as a new process would.
func (r *rig) open() {
	r.t.Helper()
	log := slog.New(slog.DiscardHandler)
	st, err := sqlite.Open(context.Background(), sqlite.Options{Path: r.path, Logger: log})
	if err != nil {
		r.t.Fatal(err)
	}
	opts := Options{
		Store: st, Logger: log, Disconnect: func(string, int64) {},
		Now:         func() time.Time { return time.Now().Add(time.Duration(r.ahead.Load())) },
		WakeTimeout: 1500 * time.Millisecond, DrainTimeout: 300 * time.Millisecond, Quarantine: time.Hour,
	}
	r.tune(&opts)
	f, err := New(context.Background(), opts)
	if err != nil {
		r.t.Fatal(err)
	}
	r.store, r.fleet = st, f
	r.t.Cleanup(r.close)
}

func (r *rig) close() {
	if r.fleet != nil {
		r.fleet.Close()
		r.store.Close()
		r.fleet = nil
	}
}

func (r *rig) write(fn func(store.Tx) error) {
	r.t.Helper()
	if err := r.store.Write(context.Background(), fn); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) leases() []core.Lease {
	r.t.Helper()
	var out []core.Lease
	err := r.store.Read(context.Background(), func(tx store.Tx) (err error) {
		out, err = tx.ListLeases(tenant)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// scripted is a host whose behaviour the test chooses.
type scripted struct {
	rig  *rig
	name string
	conn net.Conn
	done chan struct{}

	mu       sync.Mutex
	mute     bool // sends no report
	noDial   bool // members never dial back
	keep     bool // never tears down
	exit     string
	wrote    string // what ended members wrote
	place    string // which installation it is; "" is one and the same
	stale    bool   // reports versions of the past
	came     int64  // the version of the goal state that it comes with
	load     core.HostLoad
	goals    []core.GoalState
	present  map[string]core.GoalMember
	injected int
	image    string                           // of the program that it starts
	images   map[string]string                // what members were started from
	broken   string                           // the program that ends at once
	dhcp     func(core.GoalMember) netip.Addr // leases for members that have no address
}

func (r *rig) host(name string, configure func(*scripted)) *scripted {
	r.t.Helper()
	a, b := net.Pipe()
	h := &scripted{rig: r, name: name, conn: a, done: make(chan struct{}), present: map[string]core.GoalMember{}, images: map[string]string{}}
	if configure != nil {
		configure(h)
	}
	f := r.fleet
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = f.ServeHost(context.Background(), name, b)
	}()
	go h.run()
	r.t.Cleanup(func() {
		a.Close()
		<-h.done
		<-served
	})
	r.eventually("host connected", func() bool { return len(f.Hosts()) > 0 })
	return h
}

func (h *scripted) run() {
	defer close(h.done)
	if wire.Write(h.conn, hostapi.ToService{Report: &core.HostReport{Host: h.name, Installation: "i" + h.place, Version: h.came, Load: h.load}}) != nil {
		return
	}
	for {
		var msg hostapi.ToHost
		if err := wire.Read(h.conn, &msg, 0); err != nil {
			return
		}
		if msg.Goal != nil {
			h.obey(*msg.Goal)
		}
	}
}

func (h *scripted) obey(goal core.GoalState) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.goals = append(h.goals, goal)
	want := map[string]core.GoalMember{}
	for _, m := range goal.Members {
		want[m.ID] = m
		if !m.Address.IsValid() {
			continue // the report tells what the host has obtained
		}
		if _, ok := h.present[m.ID]; !ok {
			h.present[m.ID], h.images[m.ID] = m, h.image
			h.injected++
			if !h.noDial && h.exitOf(m.ID) == "" {
				h.rig.fleet.TunnelUp(m.ID, m.Generation)
			}
		}
	}
	for id := range h.present {
		if _, ok := want[id]; !ok && !h.keep {
			delete(h.present, id)
		}
	}
	if h.mute {
		return
	}
	report := core.HostReport{Host: h.name, Version: goal.Version, Complete: true, Load: h.load, Image: h.image}
	if h.stale {
		report.Version = 0
		report.Members = nil
	}
	for _, m := range h.present {
		exit := h.exitOf(m.ID)
		report.Members = append(report.Members, core.ObservedMember{
			ID: m.ID, Generation: m.Generation, Present: true, Running: exit == "", Exit: exit, Wrote: h.wrote, Image: h.images[m.ID],
		})
	}
	if h.stale {
		report.Members = nil
	}
	for _, m := range goal.Members {
		if !m.Address.IsValid() && h.dhcp != nil {
			report.Members = append(report.Members, core.ObservedMember{ID: m.ID, Generation: m.Generation, Present: true, Address: h.dhcp(m)})
		}
	}
	_ = wire.Write(h.conn, hostapi.ToService{Report: &report})
}

// exitOf says how a member ended, "" if it runs. The caller holds mu.
func (h *scripted) exitOf(id string) string {
	if h.broken != "" && h.images[id] == h.broken {
		return "exit status 1"
	}
	return h.exit
}

// install gives the host another program, and says so.
func (h *scripted) install(image string) {
	h.mu.Lock()
	h.image = image
	last := h.goals[len(h.goals)-1]
	h.mu.Unlock()
	h.obey(last)
}

// acquire takes a member of the gateway, which wakes if it must.
func (r *rig) acquire() Grant {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	g, err := r.fleet.Acquire(ctx, corpBI)
	if err != nil {
		r.t.Fatal(err)
	}
	return g
}

// pause pauses the gateway until its host has confirmed that nothing of it is left.
func (r *rig) pause(reason string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := r.fleet.Pause(ctx, corpBI, reason); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) eventually(what string, cond func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(120 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if cond() {
			return
		}
	}
	r.t.Fatalf("not within 120 s: %s", what)
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestLeaseStaysUntilTeardownIsConfirmed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		configure func(*scripted)
	}{
		{"the host is silent", func(h *scripted) { h.mute = true }},
		{"the host still has the member", func(h *scripted) { h.keep = true }},
		{"the host reports an older goal state", func(h *scripted) { h.stale = true }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.host("h", tt.configure)
			g := r.acquire()
			g.Release()
			err := r.fleet.Pause(within(t, 700*time.Millisecond), corpBI, "test")
			if errs.ClassOf(err) != errs.Timeout {
				t.Errorf("pause: %v, want a time-out", err)
			}
			leases := r.leases()
			if len(leases) != 1 || leases[0].State != core.LeaseHeld {
				t.Errorf("leases %+v, want the one still held", leases)
			}
		})
	}
}

func TestMemberThatEndsIsReplaced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.host("h", func(h *scripted) { h.exit = "exit status 3" })
	_, err := r.fleet.Acquire(within(t, 10*time.Second), corpBI)
	if errs.ClassOf(err) != errs.Unavailable || !strings.Contains(fmt.Sprint(err), "exit status 3") {
		t.Fatalf("got %v, want the reason of the member's end", err)
	}
	h.mu.Lock()
	h.exit = ""
	h.mu.Unlock()
	g := r.acquire()
	g.Release()
	r.eventually("the first member is gone", func() bool { return len(r.fleet.Members(tenant)) == 1 })
}

func TestMembersOutliveTheService(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.host("h", nil)
	g := r.acquire()
	g.Release()
	h.conn.Close()
	r.close()

	r.open()
	h2 := r.host("h", func(h *scripted) { h.present[g.Member.ID] = core.GoalMember{} })
	if !r.fleet.Live(g.Member.ID, g.Member.Generation) {
		t.Fatal("the member is not expected any more")
	}
	r.fleet.TunnelUp(g.Member.ID, g.Member.Generation)
	again := r.acquire()
	defer again.Release()
	if again.Member.ID != g.Member.ID {
		t.Errorf("member %s was injected although %s ran", again.Member.ID, g.Member.ID)
	}
	h2.mu.Lock()
	defer h2.mu.Unlock()
	if h2.injected != 0 {
		t.Errorf("%d members were injected after the restart", h2.injected)
	}
}

func TestOldGenerationIsNotLive(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	g := r.acquire()
	g.Release()
	if r.fleet.Live(g.Member.ID, g.Member.Generation-1) {
		t.Error("an older generation is live")
	}
	r.pause("test")
	if r.fleet.Live(g.Member.ID, g.Member.Generation) {
		t.Error("a member that was torn down is live")
	}
}

func TestFateOfAMember(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.host("h", nil)
	g := r.acquire()
	defer g.Release()
	m := g.Member
	if fate := r.fleet.Fate(within(t, 10*time.Second), m.ID, m.Generation); fate != "" {
		t.Errorf("a member that is well has the fate %q", fate)
	}
	report := time.AfterFunc(50*time.Millisecond, func() { // behind the broken connection
		h.mu.Lock()
		h.exit = "out of memory: the limit is 64 MiB"
		h.wrote = "select 'a secret'" // once it was ready, its log may quote statements
		last := h.goals[len(h.goals)-1]
		h.mu.Unlock()
		h.obey(last)
	})
	defer report.Stop()
	if fate := r.fleet.Fate(within(t, 10*time.Second), m.ID, m.Generation); fate != "out of memory: the limit is 64 MiB" {
		t.Errorf("a member that was reported as ended has the fate %q", fate)
	}
	r.eventually("the member is gone", func() bool { return len(r.fleet.Members(tenant)) == 0 })
	if fate := r.fleet.Fate(within(t, 10*time.Second), m.ID, m.Generation); fate != "out of memory: the limit is 64 MiB" {
		t.Errorf("a member that is gone has the fate %q", fate)
	}
}

func TestAnotherMachineCannotConfirmATeardown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.host("h", func(h *scripted) { h.keep = true })
	g := r.acquire()
	g.Release()
	_ = r.fleet.Pause(within(t, 300*time.Millisecond), corpBI, "test") // a does not tear it down
	b := r.host("h", func(h *scripted) { h.place = "elsewhere" })
	<-b.done // refused
	if l := r.leases(); len(l) != 1 || l[0].State != core.LeaseHeld {
		t.Errorf("leases %+v: the first machine still runs the member", l)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.present) != 1 {
		t.Error("the first machine lost its member")
	}
}

func TestForgetHost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.host("h", nil)
	g := r.acquire()
	g.Release()
	var recorded []core.Lease
	forget := func(force bool) (int, error) {
		return r.fleet.ForgetHost(r.t.Context(), "h", force, "the machine burnt down", func(_ store.Tx, l core.Lease) error {
			recorded = append(recorded, l)
			return nil
		})
	}
	if _, err := forget(true); errs.ClassOf(err) != errs.Conflict {
		t.Errorf("forgetting a connected host: %v, want a conflict", err)
	}
	h.conn.Close()
	r.eventually("it is gone", func() bool { return len(r.fleet.Hosts()) == 0 })
	if _, err := forget(false); errs.ClassOf(err) != errs.Conflict {
		t.Errorf("forgetting a host with members: %v, want a conflict", err)
	}
	n, err := forget(true)
	if err != nil || n != 1 || len(recorded) != 1 || recorded[0].Member != g.Member.ID {
		t.Fatalf("got %d, %v, recorded %+v; want one lease released", n, err, recorded)
	}
	if l := r.leases(); len(l) != 1 || l[0].State != core.LeaseQuarantined || l[0].Reason != "the machine burnt down" {
		t.Errorf("leases %+v, want the one in quarantine", l)
	}
}
