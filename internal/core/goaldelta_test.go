package core

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func goalOf(version int64, vnets map[string]string, members map[string]int64) GoalState {
	g := GoalState{Version: version}
	for uid, name := range vnets {
		g.VNets = append(g.VNets, GoalVNet{UID: uid, Name: name})
	}
	for id, generation := range members {
		g.Members = append(g.Members, GoalMember{ID: id, Generation: generation, Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(generation)})})
	}
	slices.SortFunc(g.VNets, func(a, b GoalVNet) int { return strings.Compare(a.UID, b.UID) })
	slices.SortFunc(g.Members, func(a, b GoalMember) int { return strings.Compare(a.ID, b.ID) })
	return g
}

// deltaOf compares two goal states, part by part.
func deltaOf(a, b GoalState) GoalDelta {
	d := GoalDelta{Base: a.Version, Version: b.Version, Sum: b.Sum()}
	if !cmp.Equal(a.VNets, b.VNets, compare) {
		d.Networks = &NetworksDelta{}
		for _, v := range b.VNets {
			d.Networks.All = append(d.Networks.All, v.UID)
			if !slices.ContainsFunc(a.VNets, func(o GoalVNet) bool { return cmp.Equal(o, v, compare) }) {
				d.Networks.VNets = append(d.Networks.VNets, v)
			}
		}
	}
	for _, m := range b.Members {
		if !slices.Contains(a.Members, m) {
			d.Members = append(d.Members, m)
		}
	}
	for _, m := range a.Members {
		if !slices.ContainsFunc(b.Members, func(o GoalMember) bool { return o.ID == m.ID }) {
			d.Gone = append(d.Gone, m.ID)
		}
	}
	return d
}

var compare = cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty()}

// TestDeltasMakeTheGoalState walks through random goal states: what changed since any of
// them, applied to it or to any that came later, gives the newest, whether once or twice.
func TestDeltasMakeTheGoalState(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(4, 5))
	for range 200 {
		vnets, members := map[string]string{}, map[string]int64{}
		states := []GoalState{goalOf(0, vnets, members)}
		for version := int64(1); version < 6; version++ {
			for range random.IntN(4) {
				key := fmt.Sprintf("m%d", random.IntN(6))
				if members[key] = random.Int64N(3); random.IntN(3) == 0 {
					delete(members, key)
				}
				key = fmt.Sprintf("v%d", random.IntN(3))
				if vnets[key] = fmt.Sprint(random.IntN(3)); random.IntN(3) == 0 {
					delete(vnets, key)
				}
			}
			states = append(states, goalOf(version, vnets, members))
		}
		newest := states[len(states)-1]
		cumulative := GoalDelta{}
		for _, base := range slices.Backward(states) {
			if cumulative = deltaOf(base, newest); base.Version != 3 {
				continue
			}
			for _, held := range states[3:] {
				// what was changed and put back between the two is in it as well
				d := cumulative
				for _, m := range held.Members {
					if i := slices.IndexFunc(newest.Members, func(o GoalMember) bool { return o.ID == m.ID }); i < 0 {
						d.Gone = append(slices.Clone(d.Gone), m.ID)
					} else if newest.Members[i] != m && !slices.Contains(d.Members, newest.Members[i]) {
						d.Members = append(slices.Clone(d.Members), newest.Members[i])
					}
				}
				d.Networks = &NetworksDelta{VNets: newest.VNets}
				for _, v := range newest.VNets {
					d.Networks.All = append(d.Networks.All, v.UID)
				}
				before := held.Sum()
				got, sum, err := held.Apply(sent(t, d), before)
				if err != nil || sum != newest.Sum() || !cmp.Equal(got, newest, compare) {
					t.Fatalf("%v\n%s", err, cmp.Diff(newest, got, compare))
				}
				if again, sum, err := got.Apply(d, sum); err != nil || sum != d.Sum || !cmp.Equal(again, newest, compare) {
					t.Fatalf("applied twice: %v", err)
				}
				if held.Sum() != before {
					t.Fatal("applying a delta changed what it was applied to")
				}
			}
		}
		if got, _, err := states[0].Apply(sent(t, cumulative), states[0].Sum()); err != nil || !cmp.Equal(got, newest, compare) {
			t.Fatalf("from nothing: %v\n%s", err, cmp.Diff(newest, got, compare))
		}
	}
}

// sent is a delta as the other side of a connection has it.
func sent(t *testing.T, d GoalDelta) (out GoalDelta) {
	t.Helper()
	doc, err := json.Marshal(d)
	if err == nil {
		err = json.Unmarshal(doc, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDeltaThatDoesNotFollow(t *testing.T) {
	t.Parallel()
	held := goalOf(5, map[string]string{"v1": "corp"}, map[string]int64{"m1": 1, "m2": 1})
	next := goalOf(7, map[string]string{"v1": "corp", "v2": "lab"}, map[string]int64{"m2": 2, "m3": 1})
	for _, tt := range []struct {
		name   string
		change func(d *GoalDelta, held *GoalState)
		fails  bool
	}{
		{"it follows", func(*GoalDelta, *GoalState) {}, false},
		{"its base is newer", func(d *GoalDelta, _ *GoalState) { d.Base = 6 }, true},
		{"it is older", func(d *GoalDelta, _ *GoalState) { d.Base, d.Version = 3, 4 }, true},
		{"a member that goes was forgotten", func(d *GoalDelta, _ *GoalState) { d.Gone = nil }, true},
		{"a member that comes was forgotten", func(d *GoalDelta, _ *GoalState) { d.Members = d.Members[:1] }, true},
		{"a network that comes was forgotten", func(d *GoalDelta, _ *GoalState) { d.Networks = nil }, true},
		{"a network goes by mistake", func(d *GoalDelta, _ *GoalState) { d.Networks.All = d.Networks.All[1:] }, true},
		{"the host has something else", func(_ *GoalDelta, held *GoalState) { held.VNets[0].Name = "other" }, true},
		{"the host has something more", func(_ *GoalDelta, held *GoalState) {
			held.Members = append(held.Members, GoalMember{ID: "m9"})
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d, base := sent(t, deltaOf(held, next)), held
			base.VNets = slices.Clone(held.VNets)
			tt.change(&d, &base)
			got, sum, err := base.Apply(d, base.Sum())
			if failed := err != nil; failed != tt.fails {
				t.Fatalf("%v, fails %t", err, tt.fails)
			}
			if tt.fails && (!cmp.Equal(got, base, compare) || sum != base.Sum()) {
				t.Error("a delta that failed has changed something")
			}
		})
	}
}

// TestObservationsDiffer finds a field that Equal has forgotten: a change of it would never be
// reported.
func TestObservationsDiffer(t *testing.T) {
	t.Parallel()
	values := map[string]any{
		"ID": "m", "Generation": int64(1), "Present": true, "Running": true, "JoinTokenHash": "h",
		"Address": netip.MustParseAddr("10.0.0.4"), "Exit": "e", "Wrote": "w", "Image": "i", "Phases": []Phase{{Name: "network"}},
	}
	for field := range reflect.TypeFor[ObservedMember]().Fields() {
		var changed ObservedMember
		value, ok := values[field.Name]
		if !ok {
			t.Fatalf("give the field %s a value here, and compare it in Equal", field.Name)
		}
		reflect.ValueOf(&changed).Elem().FieldByIndex(field.Index).Set(reflect.ValueOf(value))
		if changed.Equal(ObservedMember{}) || !changed.Equal(changed) { //nolint:gocritic // what is equal to itself
			t.Errorf("Equal does not compare %s", field.Name)
		}
	}
}
