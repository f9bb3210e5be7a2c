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
	// Check is what a check asks (POST /v1/check).
	Check = core.Check
	// CheckResult is what it answers; the types below are its parts.
	CheckResult = core.CheckResult
	// Endpoint is the private endpoint that answers there.
	Endpoint = core.EndpointAt
	// NextHop is where packets go, and by which route.
	NextHop = core.NextHopTo
	// Rule is one of the effective rules.
	Rule = core.EffectiveRule
	// Route is one of the effective routes.
	Route = core.EffectiveRoute
	// Probe is what a real connection met.
	Probe = core.Probe
)
