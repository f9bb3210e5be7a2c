package lifecycle

import "github.com/sluice-gateway/sluice/internal/core"

// The events of a member.
const (
	Placed         Event = "placed"          // address leased, host chosen
	Injected       Event = "injected"        // its host reports it as running
	DialledBack    Event = "dialled back"    // its tunnel is up
	TunnelLost     Event = "tunnel lost"     // and not back
	Drained        Event = "drain begun"     // it takes no new queries
	DrainCancelled Event = "drain cancelled" // it takes queries again
	Dismissed      Event = "dismissed"       // taken out of its host's goal state
	TeardownSeen   Event = "torn down"       // confirmed by its host, or by an administrator
)

// Members is the machine of members. The state before the first is "".
var Members = Machine[core.MemberState]{
	{"", Placed, core.MemberPlaced},

	{core.MemberPlaced, Injected, core.MemberInjected},
	{core.MemberPlaced, DialledBack, core.MemberReady},
	{core.MemberPlaced, Drained, core.MemberDraining},
	{core.MemberPlaced, Dismissed, core.MemberLeaving},

	{core.MemberInjected, DialledBack, core.MemberReady},
	{core.MemberInjected, Drained, core.MemberDraining},
	{core.MemberInjected, Dismissed, core.MemberLeaving},

	{core.MemberReady, TunnelLost, core.MemberInjected},
	{core.MemberReady, Drained, core.MemberDraining},
	{core.MemberReady, Dismissed, core.MemberLeaving},

	{core.MemberDraining, TunnelLost, core.MemberInjected},
	{core.MemberDraining, DrainCancelled, core.MemberReady},
	{core.MemberDraining, Dismissed, core.MemberLeaving},

	{core.MemberLeaving, TeardownSeen, core.MemberGone},
}

// MemberFacts are what decides about a member's state.
type MemberFacts struct {
	Stored   core.MemberState // what the store says, or is about to
	Draining bool             // it takes no new queries
}

func (f MemberFacts) state() core.MemberState {
	if f.Draining && f.Stored == core.MemberReady {
		return core.MemberDraining
	}
	return f.Stored
}

// OfMember returns the event that the facts make of a member in a state, or false if they
// change nothing.
func OfMember(from core.MemberState, f MemberFacts) (Event, bool) {
	return Members.event(from, f.state())
}
