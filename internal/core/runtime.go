package core

import (
	"net/netip"
	"time"
)

// MemberState is where a member is in its life.
type MemberState string

// The states of a member, in the order in which they come.
const (
	MemberPlaced   MemberState = "placed"   // leased and in a goal state
	MemberInjected MemberState = "injected" // the host reports its container as running
	MemberReady    MemberState = "ready"    // dialled back
	MemberLeaving  MemberState = "leaving"  // taken out of the goal state, teardown not confirmed
	MemberGone     MemberState = "gone"     // teardown confirmed, lease released
	// MemberDraining is a ready member that takes no new queries and finishes those it has.
	// It is shown, never stored: after a restart of the service such a member is ready.
	MemberDraining MemberState = "draining"
	// MemberSuspect is a ready member that is silent or slow to answer: it gets a query only if
	// no other has room. It is shown, never stored.
	MemberSuspect MemberState = "suspect"
)

// Member is one container of a gateway, from placement to confirmed teardown. ID is
// unique for ever; Generation grows with every injection on a host, and every name
// on the host derives from both.
type Member struct {
	ID            string      `json:"id"`
	Tenant        TenantID    `json:"tenant"`
	Generation    int64       `json:"generation"`
	Gateway       string      `json:"gateway"`
	GatewayUID    string      `json:"gatewayUid"`
	VNet          string      `json:"vnet"`
	VNetUID       string      `json:"vnetUid"`
	Subnet        string      `json:"subnet"`
	Host          string      `json:"host"`
	Address       netip.Addr  `json:"address"`       // the leased address
	TunnelAddress netip.Addr  `json:"tunnelAddress"` // its end of the link-local veth, unique on its host
	State         MemberState `json:"state"`
	Reason        string      `json:"reason,omitempty"`
	Size          MemberSize  `json:"size,omitzero"`
	CreatedAt     time.Time   `json:"createdAt"`
	ReadyAt       time.Time   `json:"readyAt,omitzero"`
	// Image names the program that it runs, as its host says; "" if that is not known. It is
	// not stored.
	Image string `json:"image,omitempty"`
}

// LeaseState is where a lease is in its life.
type LeaseState string

// The states of a lease.
const (
	LeaseHeld        LeaseState = "held"
	LeaseQuarantined LeaseState = "quarantined" // ended, not yet reusable
	// LeaseExpired is a lease that is held although its host has been silent for longer
	// than the lease's time. It is shown, never stored: the address stays its owner's.
	LeaseExpired LeaseState = "expired"
)

// Lease is the hold of one member, its owner, on one address.
type Lease struct {
	Tenant     TenantID   `json:"tenant"`
	VNet       string     `json:"vnet"`
	VNetUID    string     `json:"vnetUid"`
	Subnet     string     `json:"subnet"`
	Address    netip.Addr `json:"address"`
	Member     string     `json:"member"`
	Generation int64      `json:"generation"`
	Gateway    string     `json:"gateway,omitempty"`
	Host       string     `json:"host,omitempty"`
	State      LeaseState `json:"state"`
	AcquiredAt time.Time  `json:"acquiredAt"`
	// RenewedAt is when the host last confirmed that it has the member, or the lease was
	// taken, and ExpiresAt until when that is taken for granted.
	RenewedAt time.Time `json:"renewedAt,omitzero"`
	ExpiresAt time.Time `json:"expiresAt,omitzero"`
	// ReusableAt is set when the lease is quarantined.
	ReusableAt time.Time `json:"reusableAt,omitzero"`
	// Reason says why the lease stands as it does; stored is that of its end alone.
	Reason string `json:"reason,omitempty"`
}

// Ended reports whether nobody has the address any more.
func (l Lease) Ended() bool { return l.State == LeaseQuarantined }

// Host is a machine that runs members.
type Host struct {
	Name        string    `json:"name"`
	Connected   bool      `json:"connected"`
	GoalVersion int64     `json:"goalVersion"` // the newest goal state made for it
	SeenVersion int64     `json:"seenVersion"` // the newest that it reported as made true
	LastSeen    time.Time `json:"lastSeen,omitzero"`
	Problems    []string  `json:"problems,omitempty"`
	// NetworksVersion is that of the goal state in which networks, and not only members,
	// changed last.
	NetworksVersion int64    `json:"-"`
	Load            HostLoad `json:"load,omitzero"`
	// Image names the program that new members there run; "" if it is not known. Like Load it
	// is not stored.
	Image string `json:"image,omitempty"`
	// Installation tells apart machines, and run directories on one, that use one name.
	Installation string `json:"installation,omitempty"`
	// NATGateways are those of every tenant; each tenant sees its own as their status.
	NATGateways []NATGatewayReport `json:"-"`
	// Tunnels are those of every tenant's members; they show as metrics.
	Tunnels []TunnelReport `json:"-"`
}

// HostLoad is how much of a machine is in use, by whatever runs on it.
type HostLoad struct {
	CPUs         int     `json:"cpus"`
	Load         float64 `json:"load"` // runnable threads, over the last minute
	MemoryMiB    int64   `json:"memoryMiB"`
	AvailableMiB int64   `json:"availableMiB"` // of the memory, without swapping
}

// QueryClass says what kind of work a query is.
type QueryClass string

// The query classes.
const (
	ClassInteractive QueryClass = "interactive"
	ClassRefresh     QueryClass = "refresh"
)

// QueryState is how a query stands.
type QueryState string

// The states of a query.
const (
	// QueryQueued is a running query that waits for a slot or a member. It is shown, never
	// stored.
	QueryQueued    QueryState = "queued"
	QueryRunning   QueryState = "running"
	QuerySucceeded QueryState = "succeeded"
	QueryFailed    QueryState = "failed"
	QueryCancelled QueryState = "cancelled"
	// QueryInterrupted is a query during which the service itself stopped.
	QueryInterrupted QueryState = "interrupted"
)

// Query is the record of one query.
type Query struct {
	ID        string     `json:"id"`
	Tenant    TenantID   `json:"tenant"`
	User      string     `json:"user"`
	Source    string     `json:"source"`
	Gateway   string     `json:"gateway,omitempty"`
	SQL       string     `json:"sql"`
	Class     QueryClass `json:"class"`
	State     QueryState `json:"state"`
	StartedAt time.Time  `json:"startedAt"`
	EndedAt   time.Time  `json:"endedAt,omitzero"`
	Member    string     `json:"member,omitempty"`
	Address   netip.Addr `json:"address,omitzero"` // the member's leased address
	Rows      int64      `json:"rows"`
	Bytes     int64      `json:"bytes"` // of Arrow IPC, as the member sent them
	Phases    []Phase    `json:"phases,omitempty"`
	// Retried says which member was lost before its answer, and why: the query was run again.
	Retried string `json:"retried,omitempty"`
	// QueuedBehind is how many queries of its class waited for the gateway when it came and
	// had to wait itself; QueuePosition, while it waits, which one it is.
	QueuedBehind  int `json:"queuedBehind,omitempty"`
	QueuePosition int `json:"queuePosition,omitempty"`
	// SQLHash stands for SQL where the installation keeps no statements.
	SQLHash    string `json:"sqlHash,omitempty"`
	ErrorClass string `json:"errorClass,omitempty"` // an errs.Class
	ErrorStep  string `json:"errorStep,omitempty"`
	Error      string `json:"error,omitempty"`
}

// The names of a query's phases, in order. A phase that did not happen (a query to a
// running gateway is not leased) is absent.
const (
	PhaseRetried     = "retried"      // on a member that was lost before its answer
	PhaseQueued      = "queued"       // admitted → a member was chosen
	PhaseLeased      = "leased"       // an address was leased and a goal state written
	PhaseInjected    = "injected"     // the host reported the container as running
	PhaseDialledBack = "dialled back" // the member's tunnel came up
	PhaseConnected   = "connected"    // the member was connected to the data source
	PhaseExecuted    = "executed"     // the data source answered with the first row or the end
	PhaseStreamed    = "streamed"     // the last byte was handed to the client
)

// Phase is one step of a query and how long it took by itself.
type Phase struct {
	Name     string        `json:"name"`
	Duration time.Duration `json:"durationNs"`
}
