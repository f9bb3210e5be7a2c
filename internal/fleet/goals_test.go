package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostapi"
	"github.com/sluice-gateway/sluice/internal/store"
)

// follower is a host that keeps a goal state by what it is sent, as the host package does.
type follower struct {
	name    string
	session *session // nil: not connected
	view    *view    // what the service remembers of the connection
	goal    *core.GoalState
	sum     core.GoalSum
	plain   bool // knows no deltas
}

// followers is a world whose hosts follow its goal states.
type followers struct {
	*world
	all []*follower
}

func newFollowers(t *testing.T, seed uint64) *followers {
	w := &followers{world: newWorld(t, seed), all: []*follower{{name: "h1"}, {name: "h2"}, {name: "h3", plain: true}}}
	w.resources(func(tx store.Tx) error {
		lab := netip.MustParsePrefix("10.30.0.0/16")
		nsg := &core.NetworkSecurityGroup{Name: "rules", Rules: []core.SecurityRule{{Name: "r", Priority: 100, Source: []string{"bi"}}}}
		for uid, spec := range map[string]core.Resource{
			"v1": &core.VirtualNetwork{Name: "corp", AddressSpace: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")}, Subnets: []core.Subnet{
				{Name: "gateways", Prefix: netip.MustParsePrefix("10.20.0.0/24"), Delegation: core.DelegationGateways, NSG: "rules"},
			}},
			"v2":  &core.VirtualNetwork{Name: "lab", AddressSpace: []netip.Prefix{lab}, Subnets: []core.Subnet{{Name: "gateways", Prefix: lab, Delegation: core.DelegationGateways}}},
			"n1":  nsg,
			"n2":  &core.NetworkSecurityGroup{Name: "own"},
			"asg": &core.ApplicationSecurityGroup{Name: "bi"},
			"g1":  &core.Gateway{Name: "gw1", VNet: "corp", Subnet: "gateways", ApplicationSecurityGroups: []string{"bi"}},
			"g2":  &core.Gateway{Name: "gw2", VNet: "corp", Subnet: "gateways", NetworkSecurityGroup: "own"},
		} {
			if err := tx.PutResource(core.Stored{UID: uid, Tenant: tenant, Version: 2, Spec: spec}); err != nil {
				return err
			}
		}
		return nil
	})
	for _, h := range w.all {
		w.connectOne(h)
	}
	return w
}

// resources changes resources as the service does.
func (w *followers) resources(fn func(tx store.Tx) error) bool {
	err := w.store.Write(context.Background(), func(tx store.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		return w.fleet.BumpGoals(tx)
	})
	return err == nil
}

// spec changes one gateway.
func (w *followers) spec(name string, change func(g *core.Gateway)) bool {
	return w.resources(func(tx store.Tx) error {
		g, err := tx.GetResource(tenant, core.KindGateway, name)
		if err != nil {
			return err
		}
		change(g.Spec.(*core.Gateway))
		return tx.PutResource(g)
	})
}

func (w *followers) connectOne(h *follower) {
	h.session = &session{info: core.Host{Name: h.name, Connected: true}, kick: make(chan struct{}, 1), holds: h.holds()}
	h.view = nil
	w.fleet.mu.Lock()
	defer w.fleet.mu.Unlock()
	w.fleet.hosts[h.name] = h.session
}

func (h *follower) holds() *hostapi.Holds {
	if h.plain || h.goal == nil {
		return nil
	}
	return &hostapi.Holds{Version: h.goal.Version, Sum: h.sum}
}

// send has the service look for something to send; what it sends arrives if it is not lost
// on the way, which a connection would never let happen.
func (w *followers) send(h *follower, arrives bool) {
	w.t.Helper()
	var msg hostapi.ToHost
	v, err := w.fleet.next(context.Background(), h.session, h.view, &msg)
	if err != nil {
		w.fatalf("%v", err)
	}
	h.view = v
	doc, err := json.Marshal(msg)
	if err != nil {
		w.fatalf("%v", err)
	}
	msg = hostapi.ToHost{}
	if err := json.Unmarshal(doc, &msg); err != nil {
		w.fatalf("%v", err)
	}
	switch {
	case msg.Goal == nil && msg.Delta == nil:
		return
	case !arrives:
		w.done["lost"]++
		return
	case msg.Goal != nil:
		w.done["whole"]++
		h.goal, h.sum = msg.Goal, msg.Goal.Sum()
	default:
		w.done["changes"]++
		w.done["members changed"] += len(msg.Delta.Members)
		if msg.Delta.Networks != nil {
			w.done["networks changed"] += len(msg.Delta.Networks.VNets)
		}
		if h.plain {
			w.fatalf("%s was sent a delta and knows none", h.name)
		}
		goal, sum, err := h.goal.Apply(*msg.Delta, h.sum)
		if err != nil {
			w.done["did not follow"]++ // the host has forgotten something
			h.session.lost = true
			return
		}
		h.goal, h.sum = &goal, sum
	}
	w.compare(h)
}

// compare holds what a host has against the whole, if nothing has happened since.
func (w *followers) compare(h *follower) {
	w.t.Helper()
	whole, err := w.fleet.goal(context.Background(), h.name)
	if err != nil {
		w.fatalf("%v", err)
	}
	if whole.Version != h.goal.Version {
		return
	}
	w.done["compared"]++
	if d := cmp.Diff(whole, *h.goal, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty()); d != "" {
		w.fatalf("%s does not have goal state %d (-whole +host):\n%s", h.name, whole.Version, d)
	}
}

// happens lets one thing happen to the world.
func (w *followers) happens(h *follower) {
	what := w.random.IntN(18)
	if what >= 12 && what < 16 && w.random.IntN(3) > 0 {
		what = 0 // what ends in a whole goal state is rare
	}
	switch what {
	case 0, 1, 2, 3:
		w.place()
	case 4, 5:
		w.remove()
	case 6, 7:
		w.fleet.mu.Lock()
		var leaving []*member
		for m := range w.fleet.leaving {
			leaving = append(leaving, m)
		}
		w.fleet.mu.Unlock()
		for _, m := range leaving {
			if err := w.fleet.confirmGone(context.Background(), m, end{reason: "test"}); err != nil {
				w.fatalf("%v", err)
			}
		}
	case 8: // a day after they are gone, when every host has long said that it has heard of it
		for _, h := range w.all {
			w.send(h, true)
			h.session.holds = h.holds()
		}
		_ = w.store.Write(context.Background(), func(tx store.Tx) error { return tx.PurgeMembers(w.clock().Add(time.Hour)) })
	case 9:
		w.spec("gw0", func(g *core.Gateway) { g.VNet = []string{"corp", "lab"}[w.random.IntN(2)] })
	case 10:
		w.spec("gw2", func(g *core.Gateway) { g.NetworkSecurityGroup = []string{"own", ""}[w.random.IntN(2)] })
	case 11:
		w.resources(func(tx store.Tx) error {
			if _, err := tx.GetResource(tenant, core.KindGateway, "gw0"); err == nil {
				return tx.DeleteResource(tenant, core.KindGateway, "gw0")
			}
			return tx.PutResource(core.Stored{UID: "g0", Tenant: tenant, Version: 1, Spec: &core.Gateway{Name: "gw0", VNet: "lab", Subnet: "gateways"}})
		})
	case 12:
		w.connectOne(h)
	case 13: // the host's process starts again, and forgets
		h.goal, h.sum = nil, core.GoalSum{}
		w.connectOne(h)
	case 14:
		if w.random.IntN(4) == 0 {
			w.kill()
			w.open()
			for _, h := range w.all {
				w.connectOne(h)
			}
		}
	case 15: // a defect of the host
		if h.goal != nil && len(h.goal.Members) > 0 {
			h.goal.Members = slices.Clone(h.goal.Members[1:])
			h.sum = h.goal.Sum()
			w.done["forgotten"]++
		}
	case 16:
		w.now.Add(int64([]time.Duration{hostapi.Silence, compareGoals}[w.random.IntN(2)]))
	case 17:
		w.send(h, false)
	}
}

// catchUp lets a host take in what is left: at most one message that does not follow, and
// everything after it. The service may still be at something by itself.
func (w *followers) catchUp(h *follower) {
	w.t.Helper()
	for range 1000 {
		for range 3 {
			h.session.holds = h.holds()
			w.send(h, true)
		}
		w.now.Add(int64(hostapi.Silence)) // what was lost on the way is missed by then
		whole, err := w.fleet.goal(context.Background(), h.name)
		if err != nil {
			w.fatalf("%v", err)
		}
		if whole.Version == h.goal.Version {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.fatalf("%s does not get to the newest goal state", h.name)
}

// TestHostsFollowByChanges: whatever happens to members, resources, connections and processes,
// a host that has taken in what it was sent has exactly the whole goal state, and one that
// lost something is soon right again.
func TestHostsFollowByChanges(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newFollowers(t, seed)
			for range 400 {
				h := w.all[w.random.IntN(len(w.all))]
				w.happens(h)
				if w.random.IntN(3) == 0 {
					w.send(h, true)
				}
				if w.random.IntN(2) == 0 { // what the host says of itself comes now and then
					h.session.holds = h.holds()
				}
			}
			for _, h := range w.all {
				w.catchUp(h)
				w.compare(h)
			}
			t.Logf("%v", w.done)
			for _, what := range []string{"changes", "whole", "lost", "members changed", "networks changed", "forgotten"} {
				if w.done[what] == 0 {
					t.Errorf("it never came to %q: %v", what, w.done)
				}
			}
		})
	}
}

// TestSentGoalStatesAreForgotten: a host that never says what it holds, or holds something
// else, costs no more with each goal state.
func TestSentGoalStatesAreForgotten(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		holds *hostapi.Holds
		want  int
	}{
		{"a host that says nothing", nil, 1 + maxKept},
		{"one that is far behind", &hostapi.Holds{Version: 1}, 1 + maxKept},
		{"one that is near", &hostapi.Holds{Version: 298}, 3},
		{"one of another history", &hostapi.Holds{Version: 1000}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v := newView(core.GoalState{Version: 1}, time.Time{})
			for version := int64(2); version <= 300; version++ {
				next := newView(core.GoalState{Version: version}, time.Time{})
				next.keep(v.sent, tt.holds)
				v = next
			}
			if len(v.sent) != tt.want {
				t.Errorf("%d goal states are remembered, want %d", len(v.sent), tt.want)
			}
		})
	}
}
