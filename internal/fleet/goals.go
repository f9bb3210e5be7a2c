package fleet

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostapi"
	"github.com/sluice-gateway/sluice/internal/placement"
	"github.com/sluice-gateway/sluice/internal/store"
	"github.com/sluice-gateway/sluice/internal/wire"
)

// compareGoals is how often what a host was sent, change by change, is compared with its
// whole goal state.
const compareGoals = 5 * time.Minute

// maxKept bounds how many goal states are remembered of which a host may say that it holds
// them, or never will.
const maxKept = 64

// view is the goal state that a host was sent on its connection: as much of it as it takes to
// send what changes.
type view struct {
	version  int64
	sum      core.GoalSum
	members  map[string]core.GoalSum // by ID
	vnets    map[string]sentVNet     // by UID
	sent     map[int64]core.GoalSum  // by version; of those that the host may say it holds
	at       time.Time               // when something was sent last
	compared time.Time
}

// sentVNet is a network and the version of the goal state with which it came or changed.
type sentVNet struct {
	core.GoalVNet
	sum   core.GoalSum
	since int64
}

func newView(goal core.GoalState, now time.Time) *view {
	v := &view{members: map[string]core.GoalSum{}, vnets: map[string]sentVNet{}, sent: map[int64]core.GoalSum{}, at: now, compared: now}
	for _, m := range goal.Members {
		v.members[m.ID] = core.SumOfMember(m)
		v.sum.Toggle(v.members[m.ID])
	}
	v.takeVNets(goal.VNets, goal.Version)
	v.reached(goal.Version)
	return v
}

// base is the version that the host has, if it was sent on this connection and the host
// understood all of it.
func (v *view) base(h *hostapi.Holds) (int64, bool) {
	if v == nil || h == nil {
		return 0, false
	}
	sum, ok := v.sent[h.Version]
	return h.Version, ok && sum == h.Sum
}

// due reports whether it is time to compare it with the whole. What a host that knows no
// deltas has can't be told.
func (v *view) due(h *hostapi.Holds, now time.Time) bool {
	return v != nil && h != nil && now.Sub(v.compared) >= compareGoals
}

// unheeded reports whether the host should long have said that it has what was sent last.
func (v *view) unheeded(h *hostapi.Holds, now time.Time) bool {
	return v != nil && h != nil && h.Version < v.version && now.Sub(v.at) >= hostapi.Silence
}

// reached notes that all up to a version is in it.
func (v *view) reached(version int64) {
	v.version = version
	v.sent[version] = v.sum
}

// takeVNets makes the networks those given, as of a version.
func (v *view) takeVNets(vnets []core.GoalVNet, version int64) {
	old := v.vnets
	v.vnets = map[string]sentVNet{}
	for _, n := range vnets {
		is := sentVNet{n, core.SumOfVNet(n), version}
		if was, ok := old[n.UID]; ok && was.sum == is.sum {
			is.since = was.since
		}
		v.vnets[n.UID] = is
		v.sum.Toggle(is.sum)
	}
	for _, was := range old {
		v.sum.Toggle(was.sum)
	}
}

// takeMembers makes members what their rows say, and adds them to a delta.
func (v *view) takeMembers(rows []core.Member, d *core.GoalDelta) {
	for _, row := range rows {
		if was, ok := v.members[row.ID]; ok {
			v.sum.Toggle(was)
			delete(v.members, row.ID)
		}
		if !placement.Runs(row.State) {
			d.Gone = append(d.Gone, row.ID)
			continue
		}
		m := placement.GoalMember(row)
		v.members[m.ID] = core.SumOfMember(m)
		v.sum.Toggle(v.members[m.ID])
		d.Members = append(d.Members, m)
	}
}

// networksSince are the networks that came or changed after a version, or nil. That one went
// is seen by the version as of which networks changed.
func (v *view) networksSince(base, changed int64) *core.NetworksDelta {
	if changed <= base {
		return nil
	}
	d := &core.NetworksDelta{All: slices.Sorted(maps.Keys(v.vnets))}
	for _, uid := range d.All {
		if n := v.vnets[uid]; n.since > base {
			d.VNets = append(d.VNets, n.GoalVNet)
		}
	}
	return d
}

// send keeps the host's goal state up to date, and the connection alive.
func (f *Fleet) send(ctx context.Context, s *session) error {
	beat := time.NewTicker(hostapi.Heartbeat)
	defer beat.Stop()
	var sent *view
	for {
		msg := hostapi.ToHost{Deltas: true}
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
			f.mu.Lock()
			holds, now := s.holds, f.opts.Now()
			f.mu.Unlock()
			if sent.due(holds, now) || sent.unheeded(holds, now) {
				poke(s.kick)
			}
		case <-s.kick:
			var err error
			if sent, err = f.next(ctx, s, sent, &msg); err != nil {
				return err
			}
		}
		_ = s.conn.SetWriteDeadline(time.Now().Add(hostapi.Silence))
		if err := wire.Write(s.conn, msg); err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
	}
}

// next puts into a message what brings the host's goal state up to date, read from one
// snapshot of the store: what has changed since the one that the host has or, if that is
// not known, everything. It returns what the host was sent then.
func (f *Fleet) next(ctx context.Context, s *session, v *view, msg *hostapi.ToHost) (*view, error) {
	f.mu.Lock()
	holds, lost := s.holds, s.lost
	s.lost = false
	f.mu.Unlock()
	now := f.opts.Now()
	lost = lost || v.unheeded(holds, now)
	due := v.due(holds, now)
	base, known := v.base(holds)
	known = known && !lost
	err := f.opts.Store.Read(ctx, func(tx store.Tx) error {
		h, err := hostRow(tx, s.info.Name)
		if err != nil {
			return err
		}
		same := v != nil && v.version == h.GoalVersion
		if same && !lost && !due {
			return nil
		}
		if known && !same {
			if msg.Delta, err = v.advance(tx, h, base); err != nil {
				return err
			}
			v.at = now
		}
		if known && !due {
			return nil
		}
		goal, err := wholeGoal(tx, h)
		if err != nil {
			return err
		}
		whole := newView(goal, now)
		switch {
		case known && whole.sum == v.sum:
			v.compared = now
			return nil
		case known:
			f.log.Warn("a host's goal state was not as the changes that it was sent: it is sent again", "host", h.Name, "version", h.GoalVersion)
		case holds != nil && !lost && *holds == (hostapi.Holds{Version: goal.Version, Sum: whole.sum}):
			v = whole // it has it from an earlier connection
			return nil
		}
		if v != nil {
			whole.keep(v.sent, holds)
		}
		v, msg.Goal, msg.Delta = whole, &goal, nil
		return nil
	})
	return v, err
}

// keep remembers what was sent before on the same connection: the host may still say that it
// holds that, but nothing older than what it has said already.
func (v *view) keep(sent map[int64]core.GoalSum, h *hostapi.Holds) {
	oldest := v.version - maxKept
	if h != nil {
		oldest = max(oldest, h.Version)
	}
	for version, sum := range sent {
		if version >= oldest && version < v.version {
			v.sent[version] = sum
		}
	}
}

// advance takes in what the store says has changed, and returns what has since the base.
func (v *view) advance(tx store.Tx, h core.Host, base int64) (*core.GoalDelta, error) {
	d := &core.GoalDelta{Base: base, Version: h.GoalVersion}
	rows, err := tx.ChangedMembers(h.Name, base)
	if err != nil {
		return nil, err
	}
	if h.NetworksVersion > v.version {
		whole, err := wholeGoal(tx, h)
		if err != nil {
			return nil, err
		}
		v.takeVNets(whole.VNets, h.GoalVersion)
	}
	v.takeMembers(rows, d)
	v.reached(h.GoalVersion)
	maps.DeleteFunc(v.sent, func(version int64, _ core.GoalSum) bool { return version < base })
	d.Networks, d.Sum = v.networksSince(base, h.NetworksVersion), v.sum
	return d, nil
}

// hostRow is what the store has of a host; of one that it does not know, the name.
func hostRow(tx store.Tx, name string) (core.Host, error) {
	hosts, err := tx.ListHosts()
	for _, h := range hosts {
		if h.Name == name {
			return h, err
		}
	}
	return core.Host{Name: name}, err
}

// goal builds a host's goal state from one snapshot of the store.
func (f *Fleet) goal(ctx context.Context, host string) (goal core.GoalState, err error) {
	err = f.opts.Store.Read(ctx, func(tx store.Tx) error {
		h, err := hostRow(tx, host)
		if err != nil {
			return err
		}
		goal, err = wholeGoal(tx, h)
		return err
	})
	return goal, err
}

func wholeGoal(tx store.Tx, h core.Host) (core.GoalState, error) {
	tenants, err := tx.ListTenants()
	if err != nil {
		return core.GoalState{}, err
	}
	var resources []core.Stored
	for _, t := range tenants {
		set, err := tx.ListResources(t, "")
		if err != nil {
			return core.GoalState{}, err
		}
		resources = append(resources, set...)
	}
	members, err := tx.ListMembers("", false)
	if err != nil {
		return core.GoalState{}, err
	}
	return placement.Goal(h.Name, h.GoalVersion, resources, members), nil
}

// tellNetworks notes in which goal states a member, by its coming or going, changes networks
// and not only members, and says whether it is in every host's: an application security group
// means its members everywhere, an NSG of a gateway's own counts where the member is, and a
// network that no gateway has any more is there for its members alone. The member's own
// host has its new version already.
func (f *Fleet) tellNetworks(tx store.Tx, m core.Member) (everyone bool, err error) {
	r, err := tx.GetResource(m.Tenant, core.KindGateway, m.Gateway)
	if errs.ClassOf(err) == errs.NotFound {
		return false, tx.MarkNetworks(m.Host)
	}
	if err != nil {
		return false, err
	}
	switch g := r.Spec.(*core.Gateway); {
	case len(g.ApplicationSecurityGroups) > 0:
		return true, f.BumpGoals(tx)
	case g.NetworkSecurityGroup != "" || g.VNet != m.VNet:
		return false, tx.MarkNetworks(m.Host)
	}
	return false, nil
}
