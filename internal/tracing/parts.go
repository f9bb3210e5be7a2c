package tracing

import (
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// place is which part of an installation something happened in.
type place int

const (
	inService place = iota
	onHost
	inMember
)

// part is a stretch of a query's time.
type part struct {
	name     string
	at       place
	from, to time.Time
	ofWake   bool // it is within the part before it whose name is partWake
	failed   bool
}

// partWake is what its phases are within.
const partWake = "wake"

// partsOf lays out a query's time: its phases one after the other, those of a wake within
// one part, and the step that failed up to the end.
func partsOf(q core.Query) (out []part) {
	at := q.StartedAt
	wake := -1
	add := func(p part, d time.Duration) {
		p.from, p.to = at, at.Add(d)
		if p.to.After(q.EndedAt) { // phases are timed by several clocks
			p.to = q.EndedAt
		}
		if at = p.to; p.ofWake {
			out[wake].to = p.to
		}
		out = append(out, p)
	}
	for _, p := range q.Phases {
		where, ofWake := whose(p.Name)
		if !ofWake {
			wake = -1
		} else if wake < 0 {
			wake = len(out)
			out = append(out, part{name: partWake, from: at, to: at})
		}
		add(part{name: p.Name, at: where, ofWake: ofWake}, p.Duration)
	}
	if q.State == core.QuerySucceeded || q.ErrorStep == "" || q.ErrorStep == errs.StepAdmit {
		return out
	}
	if n := len(out) - 1; n >= 0 && out[n].name == core.PhaseStreamed {
		out[n].failed = true
		return out
	}
	wake = -1
	where, _ := whose(q.ErrorStep)
	add(part{name: q.ErrorStep, at: where, failed: true}, q.EndedAt.Sub(at))
	return out
}

// whose is where a phase passes, or a step fails, and whether it is part of a wake.
func whose(name string) (p place, ofWake bool) {
	switch name {
	case core.PhaseLeased:
		return inService, true
	case core.PhaseInjected:
		return onHost, true
	case core.PhaseDialledBack:
		return inMember, true
	case core.PhaseConnected, core.PhaseExecuted, core.PhaseStreamed,
		errs.StepResolve, errs.StepConnect, errs.StepTLS, errs.StepSignIn, errs.StepExecute, errs.StepStream:
		return inMember, false
	}
	return inService, false
}
