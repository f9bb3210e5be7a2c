// Package fleet owns the life of members: it places them, leases their addresses,
// tells hosts what to run, hears what became of it, and hands out members that are
// ready to take a query.
//
// The store is the truth about members and leases: an address is leased in the same
// transaction that puts its member into a goal state, and released only after the
// host has confirmed the teardown. What is kept in memory (who is connected, how many
// queries are in flight) can be lost at any time. Fleet knows nothing of queries,
// credentials or results; the service is its only caller.
package fleet

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/admission"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

// Options configure a Fleet.
type Options struct {
	Store      store.Store                           // Required
	Disconnect func(member string, generation int64) // Required: cuts a member's tunnels
	Logger     *slog.Logger                          // Required
	Now        func() time.Time                      // Default time.Now
	// WakeTimeout bounds how long a member may take to dial back, at its injection or
	// after its tunnel was lost. Default 30 s.
	WakeTimeout time.Duration
	// DrainTimeout bounds how long a pause waits for queries in flight. Default 30 s.
	DrainTimeout time.Duration
	// Quarantine is how long a released address rests. Default 30 s.
	Quarantine time.Duration
	// ShrinkAfter is for how long fewer members must have been enough before one goes. Default 5 min.
	ShrinkAfter time.Duration
	// RetireTimeout bounds how long a member that is replaced, or is one too many, may take to
	// finish its queries. Default 2 h.
	RetireTimeout time.Duration
	// LeaseTime is for how long a lease counts as confirmed after a report of its host that
	// has the member. Default 2 min.
	LeaseTime time.Duration
}

// Fleet is the set of all members and hosts.
type Fleet struct {
	opts Options
	log  *slog.Logger

	mu            sync.Mutex
	live          map[string]*member            // by ID; those that are not gone
	members       map[string]map[string]*member // the same, by gateway UID
	leaving       map[*member]bool              // those of which the teardown is to be confirmed
	unsettled     map[*member]bool              // those that are neither ready, and to stay so, nor leaving
	hosts         map[string]*session
	wakes         map[string]*wake         // by gateway UID
	gates         map[string]*gate         // by gateway UID
	queued        int                      // requests that wait at a gate
	pausing       map[string]chan struct{} // by gateway UID; closed at the pause's end
	lives         map[string]*life         // by gateway UID
	changed       chan struct{}            // closed and replaced at every change
	dirty         map[string]bool
	stale         bool      // the gateways' specs have changed
	checked       time.Time // until when schedules have been acted on
	checkedStored time.Time
	used          map[string]time.Time      // when gateways were used last, as the store has it
	usedStored    time.Time                 // when that was written
	unsaved       []core.Transition         // oldest first
	counted       map[TransitionCount]int64 // since the start
	urgent        chan struct{}             // capacity 1: keep has something to do now

	saving  sync.Mutex // held while unsaved goes to the store; taken before mu
	placing sync.Mutex // held while addresses change hands; taken before mu
	spaces  *spaces    // under placing; nil: to be read from the store

	stop context.CancelFunc
	done context.Context
	wg   sync.WaitGroup
}

// member is what the fleet knows of one member beyond its row.
type member struct {
	core.Member
	inflight       int
	work           []*Work // what is in flight
	pace           admission.Pace
	told           core.MemberState // the state that was noted last
	draining       bool             // takes no new queries
	retiring       string           // why it goes once it is idle
	retiredAt      time.Time
	replaces       string // the member that goes once this one is ready
	because        string // why it replaces that
	condemned      string // why it must go, until the store knows
	connected      bool
	silent         bool       // a heartbeat is overdue
	answered       time.Time  // when it last began to answer a query
	since          time.Time  // of the last change between connected and not
	leavingVersion int64      // the goal state in which it was first absent
	joinHash       string     // of the token that the host vouches for
	joinStored     bool       // the store knows it
	obtained       netip.Addr // by DHCP: its host has it, the store has not leased it yet
	leasedAt       time.Time
	injectedAt     time.Time
	hostPhases     []core.Phase
	confirmed      time.Time // when its host last reported that it had it; see Fleet.confirmed
	seenBy         *session  // the connection on which its host says that it has it; nil: none
	expires        time.Time // of its lease, as the store has it
	expiryTold     bool
}

// New makes a fleet from what the store knows. Close ends it.
func New(ctx context.Context, opts Options) (*Fleet, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	opts.WakeTimeout = orDefault(opts.WakeTimeout, 30*time.Second)
	opts.DrainTimeout = orDefault(opts.DrainTimeout, 30*time.Second)
	opts.Quarantine = orDefault(opts.Quarantine, 30*time.Second)
	opts.ShrinkAfter = orDefault(opts.ShrinkAfter, 5*time.Minute)
	opts.RetireTimeout = orDefault(opts.RetireTimeout, 2*time.Hour)
	opts.LeaseTime = orDefault(opts.LeaseTime, 2*time.Minute)
	f := &Fleet{
		opts: opts, log: opts.Logger,
		live: map[string]*member{}, leaving: map[*member]bool{}, unsettled: map[*member]bool{}, members: map[string]map[string]*member{},
		hosts: map[string]*session{}, wakes: map[string]*wake{}, gates: map[string]*gate{}, pausing: map[string]chan struct{}{}, lives: map[string]*life{}, counted: map[TransitionCount]int64{},
		changed: make(chan struct{}), dirty: map[string]bool{}, urgent: make(chan struct{}, 1),
	}
	if err := f.load(ctx); err != nil {
		return nil, err
	}
	f.done, f.stop = context.WithCancel(context.Background())
	f.wg.Add(1)
	go f.keep()
	return f, nil
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// Close ends the fleet's goroutines. Members go on running.
func (f *Fleet) Close() {
	f.stop()
	f.mu.Lock()
	for _, s := range f.hosts {
		s.conn.Close()
	}
	f.mu.Unlock()
	f.wg.Wait()
	f.save()
	f.saveUsed(true)
}

// load reads the members that an earlier process left. Whether they are connected
// is not known until they dial.
func (f *Fleet) load(ctx context.Context) error {
	return f.opts.Store.Read(ctx, func(tx store.Tx) error {
		members, err := tx.ListMembers("", false)
		if err != nil {
			return err
		}
		hosts, err := tx.ListHosts()
		if err != nil {
			return err
		}
		expires, err := expiries(tx)
		if err != nil {
			return err
		}
		version := map[string]int64{}
		for _, h := range hosts {
			version[h.Name] = h.GoalVersion
		}
		if err := f.loadLives(tx); err != nil {
			return err
		}
		told, err := lastTold(tx)
		if err != nil {
			return err
		}
		for _, row := range members {
			m := &member{Member: row, told: told(row), since: f.opts.Now(), leavingVersion: version[row.Host], expires: expires[key(row.ID, row.Generation)]}
			f.enlist(m)
			if m.State == core.MemberReady {
				m.State = core.MemberInjected
			}
		}
		for _, m := range f.live {
			f.settle(m, serviceStarted)
		}
		for _, l := range f.lives {
			f.settleGateway(l)
		}
		return nil
	})
}

// serviceStarted is the reason of what a new process finds.
const serviceStarted = "the service was started again; whether the member is there shows when it dials back"

// enlist begins to know a member. The caller holds mu, or has the fleet for itself.
func (f *Fleet) enlist(m *member) {
	f.live[m.ID] = m
	if m.State == core.MemberLeaving {
		f.leaving[m] = true
	}
	f.track(m)
	if f.members[m.GatewayUID] == nil {
		f.members[m.GatewayUID] = map[string]*member{}
	}
	f.members[m.GatewayUID][m.ID] = m
}

// discharge ends that. The caller holds mu.
func (f *Fleet) discharge(m *member) {
	delete(f.live, m.ID)
	delete(f.leaving, m)
	delete(f.unsettled, m)
	delete(f.dirty, m.ID)
	delete(f.members[m.GatewayUID], m.ID)
	if len(f.members[m.GatewayUID]) == 0 {
		delete(f.members, m.GatewayUID)
	}
}

// track puts a member among the unsettled, or takes it out: settle does that at each change. The
// caller holds mu, or has the fleet for itself.
func (f *Fleet) track(m *member) {
	stays := m.State == core.MemberReady && m.condemned == "" && m.retiring == ""
	if stays || m.State == core.MemberLeaving || f.live[m.ID] != m {
		delete(f.unsettled, m)
	} else {
		f.unsettled[m] = true
	}
}

// condemn says why a member must go; keep takes it out of the goal state. The caller
// holds mu.
func (f *Fleet) condemn(m *member, reason string) {
	m.condemned = reason
	f.lose(m, reason)
	f.settle(m, reason)
	f.hurry()
	f.broadcast()
}

// hurry has keep look now.
func (f *Fleet) hurry() {
	select {
	case f.urgent <- struct{}{}:
	default:
	}
}

// broadcast wakes everyone who waits for a change, and serves queries that wait for one.
// The caller holds mu.
func (f *Fleet) broadcast() {
	f.dispatchAll()
	close(f.changed)
	f.changed = make(chan struct{})
}

// wait blocks until cond is true; cond runs with mu held.
func (f *Fleet) wait(ctx context.Context, cond func() bool) error {
	for {
		f.mu.Lock()
		ok, changed := cond(), f.changed
		f.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-f.done.Done():
			return errs.New(errs.Unavailable, "the service is stopping")
		}
	}
}

// Members returns every member that is not gone, of one tenant (of all for ""), by ID.
func (f *Fleet) Members(t core.TenantID) []core.Member {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.opts.Now()
	var out []core.Member
	for _, id := range slices.Sorted(maps.Keys(f.live)) {
		if m := f.live[id]; t == "" || m.Tenant == t {
			row := m.Member
			switch {
			case m.condemned != "" && row.State != core.MemberLeaving: // keep() is about to store it
				row.State, row.Reason = core.MemberLeaving, m.condemned
			case m.draining && row.State == core.MemberReady:
				row.State = core.MemberDraining
			case row.State == core.MemberReady:
				if why := f.suspicion(m, now); why != "" {
					row.State, row.Reason = core.MemberSuspect, why
				}
			}
			out = append(out, row)
		}
	}
	return out
}

// InFlight returns how many queries each member of a gateway runs at this moment.
func (f *Fleet) InFlight(gatewayUID string) map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]int{}
	for id, m := range f.members[gatewayUID] {
		out[id] = m.inflight
	}
	return out
}

// Live reports whether a member of this generation is expected to be running: its
// certificate is good for nothing otherwise.
func (f *Fleet) Live(id string, generation int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.live[id]
	return m != nil && m.Generation == generation && m.State != core.MemberLeaving
}

// fateTimeout bounds how long Fate waits. A host that is there reports the end of a
// member within milliseconds.
const fateTimeout = 500 * time.Millisecond

// Fate says why a member to which a connection broke is no longer there, or "" if it
// is, or if nobody can tell. The host's report may be a moment behind the connection.
func (f *Fleet) Fate(ctx context.Context, id string, generation int64) string {
	ctx, cancel := context.WithTimeout(ctx, fateTimeout)
	defer cancel()
	var fate string
	var gone bool
	_ = f.wait(ctx, func() bool { // that nothing was learnt in time is an answer too
		m := f.live[id]
		if gone = m == nil || m.Generation != generation; gone {
			return true
		}
		fate = m.condemned
		if m.State == core.MemberLeaving {
			fate = m.Reason
		}
		return fate != "" || f.hosts[m.Host] == nil
	})
	if gone {
		_ = f.opts.Store.Read(ctx, func(tx store.Tx) error { // the same holds here
			m, err := tx.GetMember(id)
			if err == nil && m.Generation == generation {
				fate = m.Reason
			}
			return err
		})
	}
	return fate
}

// TunnelUp is called when a member has dialled back.
func (f *Fleet) TunnelUp(id string, generation int64) {
	f.setConnected(id, generation, true, "")
}

// TunnelDown is called when a member's tunnel is lost.
func (f *Fleet) TunnelDown(id string, generation int64, reason error) {
	text := "tunnel lost"
	if reason != nil {
		text += ": " + reason.Error()
	}
	f.setConnected(id, generation, false, text)
	if errors.Is(reason, os.ErrDeadlineExceeded) {
		f.hangs(id, generation)
	}
}

// hangs gives up a member that has gone silent although its host is there: it is stopped, or
// cut off, and waiting for it would hold up its queries. Without its host nothing is known.
func (f *Fleet) hangs(id string, generation int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.live[id]
	if m == nil || m.Generation != generation || m.connected || m.leaves() || f.hosts[m.Host] == nil {
		return
	}
	f.condemn(m, "it hangs: it missed its heartbeats, and its host is connected")
	f.log.Warn("member hangs", "member", id, "gateway", m.Gateway, "host", m.Host)
}

func (f *Fleet) setConnected(id string, generation int64, up bool, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.live[id]
	if m == nil || m.Generation != generation || m.State == core.MemberLeaving {
		return
	}
	m.connected, m.since, m.Reason, m.silent = up, f.opts.Now(), reason, false
	if up {
		if m.injectedAt.IsZero() { // the host's report is still on its way
			m.injectedAt = m.since
		}
		if m.ReadyAt.IsZero() {
			m.ReadyAt = m.since
		}
		m.State = core.MemberReady
	} else {
		m.State = core.MemberInjected
	}
	f.log.Info("member "+string(m.State), "member", id, "gateway", m.Gateway, "reason", reason)
	f.dirty[id] = true
	if up {
		reason = "its tunnel is up"
	}
	f.settle(m, reason)
	if m.replaces != "" {
		f.hurry() // the other one can go
	}
	f.broadcast()
}

// JoinRefused is called when a member's token was refused. If it is the one that the
// host vouches for, the host has lost the member (a reboot) and injected it again:
// one generation joins once, so another member must take its place.
func (f *Fleet) JoinRefused(id, tokenHash string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.live[id]
	if m == nil || m.joinHash != tokenHash || !m.joinStored || m.condemned != "" || m.State == core.MemberLeaving {
		return
	}
	f.condemn(m, injectedAgain)
}

// injectedAgain is why a member goes whose host had lost it.
const injectedAgain = "its host had lost it and injected it again"
