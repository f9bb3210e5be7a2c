package core

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// GoalDelta is what makes the goal state of version Base, or of any version between it and
// Version, into that of Version. Applying it twice is applying it once.
type GoalDelta struct {
	Base    int64 `json:"base"`
	Version int64 `json:"version"`
	// Networks is nil if they are as they were.
	Networks *NetworksDelta `json:"networks,omitempty"`
	// Members are those that are new or have changed, and Gone the IDs of those that must
	// not be there any more; a host need not have heard of them.
	Members []GoalMember `json:"members,omitempty"`
	Gone    []string     `json:"gone,omitempty"`
	// Sum is that of the goal state which must come out.
	Sum GoalSum `json:"sum"`
}

// NetworksDelta is what has changed of a goal state's networks.
type NetworksDelta struct {
	VNets []GoalVNet `json:"vnets,omitempty"` // those that are new or have changed, each complete
	All   []string   `json:"all,omitempty"`   // the UIDs of all that there are now
}

// Apply returns what a delta makes of a goal state with the given sum, and its sum; g stays
// as it is. It fails if the delta does not follow on g, or what comes out is not what was
// meant.
func (g GoalState) Apply(d GoalDelta, sum GoalSum) (GoalState, GoalSum, error) {
	if g.Version < d.Base || g.Version > d.Version {
		return g, sum, fmt.Errorf("goal state %d can't become %d by what has changed since %d", g.Version, d.Version, d.Base)
	}
	out, after := GoalState{Version: d.Version, VNets: g.VNets, Members: g.Members}, sum
	if n := d.Networks; n != nil {
		gone := func(uid string) bool { return !slices.Contains(n.All, uid) }
		out.VNets = merge(g.VNets, n.VNets, func(v GoalVNet) string { return v.UID }, gone, after.VNet)
	}
	if len(d.Members)+len(d.Gone) > 0 {
		gone := make(map[string]bool, len(d.Gone))
		for _, id := range d.Gone {
			gone[id] = true
		}
		out.Members = merge(g.Members, d.Members, func(m GoalMember) string { return m.ID }, func(id string) bool { return gone[id] }, after.Member)
	}
	if after != d.Sum {
		return g, sum, fmt.Errorf("goal state %d, made of %d and what has changed since %d, is not as it was meant", d.Version, g.Version, d.Base)
	}
	return out, after, nil
}

// merge returns have with what changed put in and what is gone left out, by key; it tells
// toggle of each part that goes and each that comes.
func merge[T any](have, changed []T, key func(T) string, gone func(string) bool, toggle func(T)) []T {
	byKey := func(a, b T) int { return strings.Compare(key(a), key(b)) }
	in := slices.SortedFunc(slices.Values(changed), byKey)
	out := make([]T, 0, len(have)+len(in))
	for _, part := range have {
		for len(in) > 0 && key(in[0]) < key(part) {
			toggle(in[0])
			out, in = append(out, in[0]), in[1:]
		}
		switch replaced := len(in) > 0 && key(in[0]) == key(part); {
		case replaced:
			toggle(part)
			toggle(in[0])
			out, in = append(out, in[0]), in[1:]
		case gone(key(part)):
			toggle(part)
		default:
			out = append(out, part)
		}
	}
	for _, part := range in {
		toggle(part)
		out = append(out, part)
	}
	return out
}

// GoalSum is a digest of a goal state without its version. It does not depend on an order,
// and follows a change at the cost of that change: each part is toggled in and out.
type GoalSum [sha256.Size]byte

// Sum is the digest of a goal state.
func (g GoalState) Sum() GoalSum {
	var s GoalSum
	for _, v := range g.VNets {
		s.VNet(v)
	}
	for _, m := range g.Members {
		s.Member(m)
	}
	return s
}

// VNet puts a network in, or takes it out if it is in.
func (s *GoalSum) VNet(v GoalVNet) { s.Toggle(SumOfVNet(v)) }

// Member puts a member in, or takes it out if it is in.
func (s *GoalSum) Member(m GoalMember) { s.Toggle(SumOfMember(m)) }

// Toggle puts in or takes out whatever has this sum.
func (s *GoalSum) Toggle(part GoalSum) { subtle.XORBytes(s[:], s[:], part[:]) }

// SumOfVNet is the sum of a network alone.
func SumOfVNet(v GoalVNet) GoalSum { return sumOf("vnet", v) }

// SumOfMember is the sum of a member alone.
func SumOfMember(m GoalMember) GoalSum { return sumOf("member", m) }

func sumOf(kind string, part any) GoalSum {
	doc, _ := json.Marshal(part) // what can't be encoded can't be sent either
	return sha256.Sum256(append([]byte(kind+" "), doc...))
}

// MarshalText implements encoding.TextMarshaler.
func (s GoalSum) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *GoalSum) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(s) {
		return errors.New("the sum of a goal state has 64 digits")
	}
	_, err := hex.Decode(s[:], text)
	return err
}
