package core

import "time"

// GatewayState is where a gateway is in its life.
type GatewayState string

// The states of a gateway.
const (
	GatewayPaused   GatewayState = "Paused"   // no member exists
	GatewayWaking   GatewayState = "Waking"   // members are on their way, none is ready
	GatewayRunning  GatewayState = "Running"  // at least one member takes queries
	GatewayDraining GatewayState = "Draining" // members finish and are torn down, none is to come
	GatewayFailed   GatewayState = "Failed"   // the last attempt to wake it failed, and nothing runs
)

// The kinds of object whose changes of state are kept.
const (
	TransitionOfGateway = "Gateway"
	TransitionOfMember  = "Member"
)

// Transition is one change of state of a gateway or of a member.
type Transition struct {
	At         time.Time `json:"at"`
	Tenant     TenantID  `json:"-"`
	Of         string    `json:"-"` // TransitionOfGateway or TransitionOfMember
	UID        string    `json:"-"` // the gateway's UID, or the member's ID
	GatewayUID string    `json:"-"`
	From       string    `json:"from,omitempty"` // "" at the beginning
	To         string    `json:"to"`
	Event      string    `json:"event"`
	Reason     string    `json:"reason"`
}
