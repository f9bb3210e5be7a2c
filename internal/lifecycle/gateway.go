package lifecycle

import "github.com/sluice-gateway/sluice/internal/core"

// The events of a gateway.
const (
	WakeRequested Event = "wake requested" // by a query, a command, a schedule, or members.min
	WakeFailed    Event = "wake failed"    // no member came up
	MemberReady   Event = "member ready"   // one takes queries
	MembersLost   Event = "members lost"   // none takes queries any more, another is on its way
	DrainBegun    Event = "drain begun"    // its members finish, none is to come
	TornDown      Event = "torn down"      // nothing of it exists any more
)

// Gateways is the machine of gateways. All of them begin as Paused.
var Gateways = Machine[core.GatewayState]{
	{core.GatewayPaused, WakeRequested, core.GatewayWaking},
	{core.GatewayPaused, MemberReady, core.GatewayRunning},
	{core.GatewayPaused, DrainBegun, core.GatewayDraining},
	{core.GatewayPaused, WakeFailed, core.GatewayFailed},

	{core.GatewayWaking, MemberReady, core.GatewayRunning},
	{core.GatewayWaking, WakeFailed, core.GatewayFailed},
	{core.GatewayWaking, DrainBegun, core.GatewayDraining},
	{core.GatewayWaking, TornDown, core.GatewayPaused},

	{core.GatewayRunning, MembersLost, core.GatewayWaking},
	{core.GatewayRunning, DrainBegun, core.GatewayDraining},
	{core.GatewayRunning, WakeFailed, core.GatewayFailed},
	{core.GatewayRunning, TornDown, core.GatewayPaused},

	{core.GatewayDraining, TornDown, core.GatewayPaused},
	{core.GatewayDraining, WakeRequested, core.GatewayWaking},
	{core.GatewayDraining, MemberReady, core.GatewayRunning},
	{core.GatewayDraining, WakeFailed, core.GatewayFailed},

	{core.GatewayFailed, WakeRequested, core.GatewayWaking},
	{core.GatewayFailed, MemberReady, core.GatewayRunning},
	{core.GatewayFailed, DrainBegun, core.GatewayDraining},
	{core.GatewayFailed, TornDown, core.GatewayPaused},
}

// GatewayFacts are what decides about a gateway's state.
type GatewayFacts struct {
	Pausing  bool // a pause is under way
	Waking   bool // a wake is under way
	Failed   bool // the last wake failed, and nobody has asked for less since
	Ready    int  // members that take queries
	Starting int  // members that are on their way
	Leaving  int  // members that take no more queries and are not gone
}

// state is the state in which a gateway of these facts is.
func (f GatewayFacts) state() core.GatewayState {
	switch {
	case f.Pausing && f.Ready+f.Starting+f.Leaving > 0:
		return core.GatewayDraining
	case f.Pausing:
		return core.GatewayPaused
	case f.Ready > 0:
		return core.GatewayRunning
	case f.Waking || f.Starting > 0:
		return core.GatewayWaking
	case f.Failed:
		return core.GatewayFailed
	case f.Leaving > 0:
		return core.GatewayDraining
	}
	return core.GatewayPaused
}

// OfGateway returns the event that the facts make of a gateway in a state, or false if
// they change nothing.
func OfGateway(from core.GatewayState, f GatewayFacts) (Event, bool) {
	return Gateways.event(from, f.state())
}
