package core

import "time"

// NATGatewayReport is what a host observed of one NAT gateway. Counters begin with the NAT
// gateway's namespace on that host.
type NATGatewayReport struct {
	UID    string   `json:"uid,omitempty"`
	Tenant TenantID `json:"tenant,omitempty"`
	VNet   string   `json:"vnet,omitempty"`
	Name   string   `json:"name,omitempty"`
	// Up says that packets have a way: namespace, interfaces, rules, and nothing known that
	// drops what it forwards.
	Up bool      `json:"up"`
	At time.Time `json:"at"`

	BytesOut       uint64 `json:"bytesOut"` // passed on from the virtual network
	BytesIn        uint64 `json:"bytesIn"`
	PacketsOut     uint64 `json:"packetsOut"`
	PacketsIn      uint64 `json:"packetsIn"`
	DroppedPackets uint64 `json:"droppedPackets"` // came from either side and were not passed on

	Connections NATConnections `json:"connections"`
	Ports       []NATPorts     `json:"ports,omitempty"`
	// Conditions hold now; a NAT gateway without trouble has none.
	Conditions []NATCondition `json:"conditions,omitempty"`
}

// NATConnections counts the flows (TCP, UDP and ping) of a NAT gateway.
type NATConnections struct {
	Total       uint64 `json:"total"`       // tracked now, those that rest before their port is free again included
	Attempted   uint64 `json:"attempted"`   // asked for a port
	Established uint64 `json:"established"` // of these, answered
	Failed      uint64 `json:"failed"`      // of these, without a free port, refused, or never answered
	Closed      uint64 `json:"closed"`      // of the established, ended by FIN or RST
	TimedOut    uint64 `json:"timedOut"`    // of the established, ended by the idle time-out
}

// NATPorts is how many ports of one public address are taken.
type NATPorts struct {
	Address  string   `json:"address"` // "host" for a NAT gateway that leaves as the host
	Protocol Protocol `json:"protocol"`
	Used     int      `json:"used"`
	Of       int      `json:"of"`
}

// NATCondition is one trouble of a NAT gateway.
type NATCondition struct {
	Type    string `json:"type"`
	Message string `json:"message"` // which object, and why
	Hint    string `json:"hint,omitempty"`
}

// The types of conditions.
const (
	NATPortsRunningOut    = "PortsRunningOut"    // from 85 % of an address's ports on
	NATTrackingRunningOut = "TrackingRunningOut" // from 85 % of the connections that the kernel tracks on
	NATForwardingBlocked  = "ForwardingBlocked"  // a firewall of the host drops what it forwards
	NATNotMade            = "NotMade"            // it could not be made as described
)
