// Package hostapi is the protocol between a host and the service: framed JSON (see
// package wire) over the TLS connection that the host dialled.
//
// The service sends goal states, the host reports what it observed. Both sides send
// something at least every Heartbeat, and give the other up after Silence. The
// packages host and fleet import it; it holds types and no code of either side.
package hostapi

import (
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

// How often each side sends something, and how long it waits for the other.
const (
	Heartbeat = 5 * time.Second
	Silence   = 3 * Heartbeat
)

// CompleteReport is how often a host tells everything, although changes would do.
const CompleteReport = time.Minute

// ToHost is a message of the service. Without a goal state it is a heartbeat.
type ToHost struct {
	Goal *core.GoalState `json:"goal,omitempty"`
	// Delta stands for a goal state, for a host that said what it holds. One that can't
	// apply it asks for everything.
	Delta *core.GoalDelta `json:"delta,omitempty"`
	// Deltas says that this service takes Changes, and sends a Delta to a host that says what
	// it holds.
	Deltas bool `json:"deltas,omitempty"`
	// Refused says why the service will not have this host; the connection ends.
	Refused string `json:"refused,omitempty"`
}

// ToService is a message of a host. Without a report it is a heartbeat.
type ToService struct {
	Report *core.HostReport `json:"report,omitempty"`
	// Changes stands for a report, for a service that said Deltas.
	Changes *Changes `json:"changes,omitempty"`
	// Holds is the goal state that the host has, acted on or not; nil for a host that knows
	// no deltas, or has none yet.
	Holds *Holds `json:"holds,omitempty"`
	// Lost asks for a complete goal state: a delta could not be applied.
	Lost bool `json:"lost,omitempty"`
}

// Holds says which goal state a host has.
type Holds struct {
	Version int64        `json:"version"`
	Sum     core.GoalSum `json:"sum"`
}

// Changes is a report of which Members are those that have come or changed since the last
// report or changes on the same connection.
type Changes struct {
	core.HostReport
	Gone []Gone `json:"gone,omitempty"`
	// SameTunnels says that Tunnels are those told last.
	SameTunnels bool `json:"sameTunnels,omitempty"`
}

// Gone is a member that a report would not have any more.
type Gone struct {
	ID         string `json:"id"`
	Generation int64  `json:"generation"`
}
