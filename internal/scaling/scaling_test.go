package scaling

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var start = time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)

// awake is a running gateway of one member that was used a moment ago.
func awake(change func(*State)) State {
	s := State{
		Now: start, Min: 0, Max: 4, AutoPause: 30 * time.Minute, ShrinkAfter: 5 * time.Minute,
		Ready: 1, Awake: true, LastUsed: start,
	}
	if change != nil {
		change(&s)
	}
	return s
}

func TestDecide(t *testing.T) {
	t.Parallel()
	ago := func(d time.Duration) time.Time { return start.Add(-d) }
	for name, c := range map[string]struct {
		state State
		want  Decision
	}{
		"nothing to do": {awake(nil), Decision{}},
		"paused":        {awake(func(s *State) { s.Ready, s.Awake = 0, false }), Decision{}},

		"idle for long enough":         {awake(func(s *State) { s.LastUsed = ago(30 * time.Minute) }), Decision{Pause: true, Reason: "no query for 30m0s"}},
		"idle for a second less":       {awake(func(s *State) { s.LastUsed = ago(30*time.Minute - time.Second) }), Decision{}},
		"a query runs":                 {awake(func(s *State) { s.LastUsed, s.Busy, s.Load = ago(time.Hour), 1, .1 }), Decision{}},
		"never pauses":                 {awake(func(s *State) { s.LastUsed, s.AutoPause = ago(1000*time.Hour), -1 }), Decision{}},
		"min is kept up":               {awake(func(s *State) { s.LastUsed, s.Min = ago(time.Hour), 1 }), Decision{}},
		"a pause is due":               {awake(func(s *State) { s.Min, s.PauseDue = 1, "its schedule" }), Decision{Pause: true, Reason: "its schedule"}},
		"a pause is due, a query runs": {awake(func(s *State) { s.PauseDue, s.Busy = "its schedule", 1 }), Decision{}},

		"min is missing":           {awake(func(s *State) { s.Ready, s.Awake, s.Min = 0, false, 2 }), Decision{Add: 2, Reason: "members.min is 2"}},
		"min is on its way":        {awake(func(s *State) { s.Starting, s.Min = 1, 2 }), Decision{}},
		"held by a pause":          {awake(func(s *State) { s.Ready, s.Awake, s.Min, s.Held = 0, false, 2, true }), Decision{}},
		"the last member is lost":  {awake(func(s *State) { s.Ready, s.Lost = 0, "out of memory" }), Decision{Add: 1, Reason: "in place of a member that was lost: out of memory"}},
		"too soon after a failure": {awake(func(s *State) { s.Ready, s.NotBefore = 0, start.Add(time.Second) }), Decision{}},
		"soon enough":              {awake(func(s *State) { s.Ready, s.NotBefore = 0, start }), Decision{Add: 1, Reason: "the gateway is awake"}},

		"queries wait":               {awake(func(s *State) { s.Queued, s.Busy, s.Load = 3, 18, 1.2 }), Decision{Add: 1, Reason: "3 queries wait, the slots of 1 member are taken"}},
		"many queries wait":          {awake(func(s *State) { s.Queued, s.Busy, s.Load = 300, 315, 21 }), Decision{Add: 3, Reason: "300 queries wait, the slots of 1 member are taken"}},
		"slots are nearly taken":     {awake(func(s *State) { s.Busy, s.Load = 13, .87 }), Decision{Add: 1, Reason: "87 % of the slots of 1 member are taken"}},
		"a member is on its way":     {awake(func(s *State) { s.Queued, s.Busy, s.Load, s.Starting = 3, 18, 1.2, 1 }), Decision{}},
		"no more than max":           {awake(func(s *State) { s.Queued, s.Busy, s.Load, s.Max = 3, 18, 1.2, 1 }), Decision{}},
		"a wake is not a growth":     {awake(func(s *State) { s.Queued, s.Busy, s.Load, s.Ready, s.Starting = 3, 18, 1.2, 0, 1 }), Decision{}},
		"max was lowered":            {awake(func(s *State) { s.Ready, s.Load = 5, 4 }), Decision{Retire: true, Reason: "members.max is 4", LowSince: start}},
		"between the two shares":     {awake(func(s *State) { s.Ready, s.Busy, s.Load, s.LowSince = 2, 9, .6, ago(time.Hour) }), Decision{}},
		"fewer would do since now":   {awake(func(s *State) { s.Ready = 3 }), Decision{LowSince: start}},
		"fewer would do for a while": {awake(func(s *State) { s.Ready, s.LowSince = 3, ago(time.Minute) }), Decision{LowSince: ago(time.Minute)}},
		"fewer would do for long": {awake(func(s *State) { s.Ready, s.LowSince = 3, ago(5*time.Minute) }),
			Decision{Retire: true, Reason: "2 of 3 members have been enough for 5m0s", LowSince: start}},

		"one is outdated":          {awake(func(s *State) { s.Outdated, s.Differs = 1, "its size is another" }), Decision{Replace: true, Reason: "its size is another"}},
		"its replacement comes":    {awake(func(s *State) { s.Outdated, s.Starting, s.Replacing = 1, 1, 1 }), Decision{}},
		"its replacement is ready": {awake(func(s *State) { s.Outdated, s.Ready, s.Replacing, s.Max = 1, 2, 1, 1 }), Decision{}},
		"outdated at max":          {awake(func(s *State) { s.Outdated, s.Max, s.Differs = 1, 1, "x" }), Decision{Replace: true, Reason: "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(c.want, Decide(c.state)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// Under any constant load a gateway comes to rest within its bounds, and stays there.
func TestConstantLoadComesToRest(t *testing.T) {
	t.Parallel()
	for tenths := 1; tenths <= 60; tenths++ {
		for first := 1; first <= 6; first++ {
			load := float64(tenths) / 10
			s := awake(func(s *State) { s.Ready, s.Load, s.Busy, s.Min, s.Max = first, load, tenths, 1, 5 })
			changes, quiet := 0, 0
			for range 3600 * 2 {
				d := Decide(s)
				s.LowSince = d.LowSince
				switch {
				case d.Add > 0:
					s.Ready += d.Add
				case d.Retire:
					s.Ready--
				case d.Pause || d.Replace:
					t.Fatalf("load %.1f: %+v", load, d)
				}
				if quiet++; d.Add > 0 || d.Retire {
					changes, quiet = changes+1, 0
				}
				s.Now = s.Now.Add(time.Second)
			}
			if quiet < 3600 || changes > 6 || s.Ready < s.Min || s.Ready > s.Max {
				t.Errorf("load %.1f from %d members: %d changes, the last %d s before the end, %d members", load, first, changes, quiet, s.Ready)
			}
			if s.Ready < s.Max && load > growAbove*float64(s.Ready) {
				t.Errorf("load %.1f is left to %d members", load, s.Ready)
			}
		}
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	for attempts, want := range map[int]time.Duration{0: 0, 1: time.Second, 2: 2 * time.Second, 9: 256 * time.Second, 10: 5 * time.Minute, 1000: 5 * time.Minute} {
		if got := Backoff(attempts); got != want {
			t.Errorf("after %d: %s, want %s", attempts, got, want)
		}
	}
}
