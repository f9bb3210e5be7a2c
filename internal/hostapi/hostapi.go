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

// ToHost is a message of the service. Without a goal state it is a heartbeat.
type ToHost struct {
	Goal *core.GoalState `json:"goal,omitempty"`
	// Refused says why the service will not have this host; the connection ends.
	Refused string `json:"refused,omitempty"`
}

// ToService is a message of a host. Without a report it is a heartbeat.
type ToService struct {
	Report *core.HostReport `json:"report,omitempty"`
}
