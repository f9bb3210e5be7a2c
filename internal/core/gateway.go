package core

// Gateway is a cluster of members in one delegated subnet.
type Gateway struct {
	Name      string      `json:"name"`
	VNet      string      `json:"vnet"`
	Subnet    string      `json:"subnet"`
	Members   MemberRange `json:"members,omitzero"`
	AutoPause Duration    `json:"autoPause,omitempty"` // default 30m
	Size      MemberSize  `json:"size,omitzero"`
	// Classes are the limits of its queries; Limits has the defaults.
	Classes Classes `json:"classes,omitzero"`
	// Schedule wakes and pauses it at set times.
	Schedule []ScheduledAct `json:"schedule,omitempty"`
	// NetworkSecurityGroup applies to each member's interface, beside the subnet's.
	NetworkSecurityGroup string `json:"networkSecurityGroup,omitempty"`
	// ApplicationSecurityGroups that its members' addresses belong to.
	ApplicationSecurityGroups []string `json:"applicationSecurityGroups,omitempty"`
}

// ScheduledAct is what is done with a gateway at set times.
type ScheduledAct struct {
	Cron     string         `json:"cron"`               // minute, hour, day of the month, month, day of the week
	TimeZone string         `json:"timeZone,omitempty"` // "Europe/Berlin"; default UTC
	Action   ScheduleAction `json:"action"`
}

// ScheduleAction says what a scheduled act does.
type ScheduleAction string

// The scheduled acts. A pause waits until the gateway is idle.
const (
	ScheduleWake  ScheduleAction = "wake"
	SchedulePause ScheduleAction = "pause"
)

// MemberRange bounds how many members a gateway runs. Max defaults to 1.
type MemberRange struct {
	Min int `json:"min"`
	Max int `json:"max"`
}

// MemberSize is the most that one member may use. Zero means the default: 2 CPUs,
// 8 GiB.
type MemberSize struct {
	CPUs      float64 `json:"cpus,omitempty"`
	MemoryMiB int64   `json:"memoryMiB,omitempty"`
}

// DataSource is something to query, and the credentials to do it with.
type DataSource struct {
	Name       string            `json:"name"`
	Gateway    string            `json:"gateway"`
	Type       string            `json:"type"` // a connector's name: "postgres"
	Parameters map[string]string `json:"parameters,omitempty"`
	// DNSServers resolve the source's name in place of the virtual network's resolver, asked
	// in order: addresses, or address:port. The member asks them itself, under its NSG.
	DNSServers []string `json:"dnsServers,omitempty"`
	// ReadOnly is true unless the user says otherwise.
	ReadOnly    *bool       `json:"readOnly,omitempty"`
	Credentials Credentials `json:"credentials,omitzero"`
}

// IsReadOnly reports whether queries run in read-only transactions.
func (d *DataSource) IsReadOnly() bool { return d.ReadOnly == nil || *d.ReadOnly }

// CredentialKind says how a data source is signed in to.
type CredentialKind string

// The credential kinds that connectors may state.
const (
	CredentialAnonymous CredentialKind = "anonymous"
	CredentialBasic     CredentialKind = "basic"
)

// Credentials of a data source. Password is write-only: an apply carries it, the
// store takes it out of the resource and keeps it sealed, and no answer contains it.
// An update without a password keeps the one that is stored.
type Credentials struct {
	Kind     CredentialKind `json:"kind,omitempty"`
	Username string         `json:"username,omitempty"`
	Password Secret         `json:"password,omitzero"`
}

// IsZero reports whether nothing was said.
func (c Credentials) IsZero() bool { return c == Credentials{} }

// Kind implements Resource.
func (g *Gateway) Kind() Kind { return KindGateway }

// ResourceName implements Resource.
func (g *Gateway) ResourceName() string { return g.Name }

// Kind implements Resource.
func (d *DataSource) Kind() Kind { return KindDataSource }

// ResourceName implements Resource.
func (d *DataSource) ResourceName() string { return d.Name }
