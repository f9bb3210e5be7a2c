package lifecycle

import (
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
)

var gatewayStates = []core.GatewayState{core.GatewayPaused, core.GatewayWaking, core.GatewayRunning, core.GatewayDraining, core.GatewayFailed}

// Whatever is the case, an allowed transition leads from every state to the one that follows.
func TestGatewayFactsAlwaysLeadSomewhere(t *testing.T) {
	t.Parallel()
	for _, from := range gatewayStates {
		for bits := range 1 << 6 {
			bit := func(i int) int { return bits >> i & 1 }
			f := GatewayFacts{Pausing: bit(0) == 1, Waking: bit(1) == 1, Failed: bit(2) == 1, Ready: bit(3), Starting: bit(4), Leaving: bit(5)}
			event, changed := OfGateway(from, f)
			if !changed {
				if f.state() != from {
					t.Errorf("%s with %+v should become %s, which no event allows", from, f, f.state())
				}
				continue
			}
			to, ok := Gateways.Next(from, event)
			if !ok || to != f.state() || to == from {
				t.Errorf("%s with %+v: %q leads to %s (%v), want %s", from, f, event, to, ok, f.state())
			}
			if _, again := OfGateway(to, f); again {
				t.Errorf("%s with %+v: nothing changed, yet %s is not the end", from, f, to)
			}
		}
	}
}

func TestGatewayStates(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		from  core.GatewayState
		facts GatewayFacts
		event Event
		to    core.GatewayState
	}{
		"a wake begins":                         {core.GatewayPaused, GatewayFacts{Waking: true}, WakeRequested, core.GatewayWaking},
		"a wake goes on":                        {core.GatewayWaking, GatewayFacts{Waking: true, Starting: 1}, "", core.GatewayWaking},
		"its member is ready":                   {core.GatewayWaking, GatewayFacts{Waking: true, Ready: 1}, MemberReady, core.GatewayRunning},
		"a wake fails, its member leaves":       {core.GatewayWaking, GatewayFacts{Failed: true, Leaving: 1}, WakeFailed, core.GatewayFailed},
		"a failed one is tried again":           {core.GatewayFailed, GatewayFacts{Waking: true}, WakeRequested, core.GatewayWaking},
		"the last member is lost and replaced":  {core.GatewayRunning, GatewayFacts{Starting: 1, Leaving: 1}, MembersLost, core.GatewayWaking},
		"one of two members is lost":            {core.GatewayRunning, GatewayFacts{Ready: 1, Leaving: 1}, "", core.GatewayRunning},
		"a pause begins":                        {core.GatewayRunning, GatewayFacts{Pausing: true, Ready: 1}, DrainBegun, core.GatewayDraining},
		"a pause of nothing":                    {core.GatewayFailed, GatewayFacts{Pausing: true, Failed: true}, TornDown, core.GatewayPaused},
		"a query waits for the pause":           {core.GatewayDraining, GatewayFacts{Pausing: true, Waking: true, Leaving: 1}, "", core.GatewayDraining},
		"the pause is over":                     {core.GatewayDraining, GatewayFacts{}, TornDown, core.GatewayPaused},
		"the pause is given up":                 {core.GatewayDraining, GatewayFacts{Ready: 1}, MemberReady, core.GatewayRunning},
		"a teardown outlasts the pause":         {core.GatewayDraining, GatewayFacts{Leaving: 1}, "", core.GatewayDraining},
		"a new member comes while others leave": {core.GatewayDraining, GatewayFacts{Starting: 1, Leaving: 2}, WakeRequested, core.GatewayWaking},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			event, changed := OfGateway(c.from, c.facts)
			if event != c.event || changed != (c.event != "") {
				t.Errorf("event %q, want %q", event, c.event)
			}
			if to := c.facts.state(); to != c.to {
				t.Errorf("state %s, want %s", to, c.to)
			}
		})
	}
}

func TestMemberStates(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		from  core.MemberState
		facts MemberFacts
		event Event
	}{
		"placed":                          {"", MemberFacts{Stored: core.MemberPlaced}, Placed},
		"injected":                        {core.MemberPlaced, MemberFacts{Stored: core.MemberInjected}, Injected},
		"dials back before the report":    {core.MemberPlaced, MemberFacts{Stored: core.MemberReady}, DialledBack},
		"drained while it starts":         {core.MemberPlaced, MemberFacts{Stored: core.MemberPlaced, Draining: true}, ""},
		"dials back into a drain":         {core.MemberInjected, MemberFacts{Stored: core.MemberReady, Draining: true}, Drained},
		"drain":                           {core.MemberReady, MemberFacts{Stored: core.MemberReady, Draining: true}, Drained},
		"drain given up":                  {core.MemberDraining, MemberFacts{Stored: core.MemberReady}, DrainCancelled},
		"dismissed":                       {core.MemberDraining, MemberFacts{Stored: core.MemberLeaving, Draining: true}, Dismissed},
		"gone":                            {core.MemberLeaving, MemberFacts{Stored: core.MemberGone, Draining: true}, TeardownSeen},
		"nothing leads back from leaving": {core.MemberLeaving, MemberFacts{Stored: core.MemberReady}, ""},
		"nothing leads back from gone":    {core.MemberGone, MemberFacts{Stored: core.MemberReady}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			event, changed := OfMember(c.from, c.facts)
			if event != c.event || changed != (c.event != "") {
				t.Errorf("event %q, want %q", event, c.event)
			}
		})
	}
}

func TestMachinesAreFunctions(t *testing.T) {
	t.Parallel()
	function(t, Gateways)
	function(t, Members)
}

// function fails if a state and an event, or two states, have more than one transition.
func function[S ~string](t *testing.T, m Machine[S]) {
	t.Helper()
	events, pairs := map[[2]string]bool{}, map[[2]S]bool{}
	for _, tr := range m {
		event, pair := [2]string{string(tr.From), string(tr.Event)}, [2]S{tr.From, tr.To}
		if events[event] || pairs[pair] || tr.From == tr.To {
			t.Errorf("%+v is there twice, or leads nowhere", tr)
		}
		events[event], pairs[pair] = true, true
		if to, ok := m.Next(tr.From, tr.Event); !ok || to != tr.To {
			t.Errorf("%+v leads to %s, %v", tr, to, ok)
		}
	}
	if to, ok := m.Next("elsewhere", Placed); ok || to != "elsewhere" {
		t.Errorf("an unknown state leads to %s", to)
	}
}
