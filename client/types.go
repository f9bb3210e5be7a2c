package client

import (
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

// TestResult lists the steps of a data source's test as far as they came; the last
// one carries the error, if any.
type TestResult struct {
	Steps []TestStep `json:"steps"`
}

// TestStep is one step: resolve, connect, tls, sign-in or execute.
type TestStep struct {
	Name     string        `json:"name"`
	Duration time.Duration `json:"durationNs"`
	Detail   string        `json:"detail,omitempty"`
	Error    string        `json:"error,omitempty"`
	Hint     string        `json:"hint,omitempty"`
	SQLState string        `json:"sqlState,omitempty"`
}

type (
	// Check is what a check asks (POST /v1/check), and the others what it answers.
	Check       = core.Check
	CheckResult = core.CheckResult
	Endpoint    = core.EndpointAt
	NextHop     = core.NextHopTo
	Rule        = core.EffectiveRule
	Route       = core.EffectiveRoute
	Probe       = core.Probe
)
