// Package store is the contract of the service's state: resources, sealed secrets,
// members, leases, hosts, the query log, changes of state, tokens and the audit log.
//
// It holds types only. sqlite/ keeps it in one file; storetest/ is the suite that
// every implementation must pass. Invariants (one owner per address, one name per
// kind, one tunnel address per host) are constraints of the schema. Every row
// belongs to a tenant. The service is the only caller.
package store

import (
	"context"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

// Store is a transactional store. Errors are *errs.Error: NotFound, Conflict for a
// violated constraint (the message names the object and the one in the way),
// StorageFull with the path, else Internal.
type Store interface {
	// Read runs fn on a consistent snapshot.
	Read(ctx context.Context, fn func(Tx) error) error
	// Write runs fn in a transaction of its own, one at a time, and commits durably if
	// fn returns nil. If fn, or the commit, fails, nothing of it remains.
	Write(ctx context.Context, fn func(Tx) error) error
	Close() error
}

// Tx is what a transaction can do. It must not be used after fn has returned.
type Tx interface {
	Resources
	Secrets
	Members
	Leases
	Hosts
	Queries
	History
	Access
}

// Resources are what users declared.
type Resources interface {
	// ListResources returns those of one kind, or of all kinds for "", by kind and name.
	ListResources(t core.TenantID, k core.Kind) ([]core.Stored, error)
	GetResource(t core.TenantID, k core.Kind, name string) (core.Stored, error)
	// PutResource inserts or, with the same tenant, kind and name, updates. The spec is
	// stored as its JSON; a DataSource's password must have been taken out: a non-zero
	// Secret in it is refused.
	PutResource(r core.Stored) error
	DeleteResource(t core.TenantID, k core.Kind, name string) error
	// ListTenants returns the tenants that own resources, by name.
	ListTenants() ([]core.TenantID, error)
}

// Secrets are sealed values that belong to a resource and go with it.
type Secrets interface {
	PutSecret(t core.TenantID, ownerUID, name string, sealed []byte) error
	GetSecret(t core.TenantID, ownerUID, name string) ([]byte, error)
}

// Members are the containers of gateways.
type Members interface {
	// PutMember inserts or updates by ID. Two members on one host that are not gone
	// can't share a tunnel address. A member that comes into its host's goal state, changes
	// there or leaves it is marked with the goal state's version of that moment, so
	// NextGoalVersion comes first.
	PutMember(m core.Member) error
	// ChangedMembers returns a host's members, gone ones too, that were marked with a later
	// version. Of members that were purged it knows nothing: whoever was told nothing for so
	// long must be told everything.
	ChangedMembers(host string, since int64) ([]core.Member, error)
	GetMember(id string) (core.Member, error)
	// ListMembers returns a tenant's members, of every tenant for "". Gone ones only
	// if gone is set, newest first.
	ListMembers(t core.TenantID, gone bool) ([]core.Member, error)
	// SetJoinHash stores the hash of a member's one-time token if the generation is
	// still the member's; the same hash again is not a change, and a used one stays used.
	// Conflict if the generation has joined with another one.
	SetJoinHash(id string, generation int64, hash string) error
	// UseJoinHash consumes the token: once only.
	UseJoinHash(id, hash string) (core.Member, error)
	// PurgeMembers deletes members that are gone for longer than the time given.
	PurgeMembers(goneBefore time.Time) error
}

// Leases are holds on addresses. Two rows for one address of one VNet can't exist.
type Leases interface {
	// AcquireLease inserts; Conflict says who holds the address. A quarantined lease
	// whose ReusableAt is past stands in nobody's way.
	AcquireLease(l core.Lease, now time.Time) error
	// RenewLease notes that the host has confirmed a held lease. It changes nothing
	// unless member and generation are the holder's.
	RenewLease(l core.Lease, renewedAt, expiresAt time.Time) error
	// QuarantineLease is the way in which a held lease ends, for a reason. It changes
	// nothing unless member and generation are the holder's. Of one that is quarantined
	// already, it can only bring the end forward.
	QuarantineLease(l core.Lease, reusableAt time.Time, reason string) error
	// ListLeases returns held and quarantined leases, of every tenant for "".
	ListLeases(t core.TenantID) ([]core.Lease, error)
	// PurgeLeases deletes quarantined leases whose ReusableAt is past.
	PurgeLeases(now time.Time) error
}

// Hosts are the machines that run members.
type Hosts interface {
	PutHost(h core.Host) error
	ListHosts() ([]core.Host, error)
	// DeleteHost forgets a host without members; Conflict if it has some, or is unknown.
	DeleteHost(name string) error
	// NextGoalVersion advances and returns the version of a host's goal state; the
	// host is made if it is new.
	NextGoalVersion(host string) (int64, error)
	// MarkNetworks notes that the networks of a host's goal state change with its present
	// version, as its NetworksVersion.
	MarkNetworks(host string) error
}

// QueryFilter selects query records; zero fields don't filter.
type QueryFilter struct {
	Source string
	State  core.QueryState
	Since  time.Time
	Limit  int // default 100, newest first
}

// Queries are the query log.
type Queries interface {
	PutQueries(qs []core.Query) error // inserts or replaces by ID
	GetQuery(t core.TenantID, id string) (core.Query, error)
	ListQueries(t core.TenantID, f QueryFilter) ([]core.Query, error)
	// InterruptQueries marks every running query as interrupted, with the reason.
	InterruptQueries(at time.Time, reason string) (int64, error)
	PurgeQueries(before time.Time) error
}

// TransitionFilter selects changes of state; zero fields don't filter.
type TransitionFilter struct {
	Tenant core.TenantID
	Of     string // core.TransitionOfGateway or core.TransitionOfMember
	UID    string
	// GatewayUID selects a gateway's own and its members'.
	GatewayUID string
	// Last is how many of each object to return. Default 20.
	Last int
}

// History is the changes of state of gateways and members.
type History interface {
	AppendTransitions(ts []core.Transition) error
	// ListTransitions returns the newest first, each object's in the order in which they
	// were appended.
	ListTransitions(f TransitionFilter) ([]core.Transition, error)
	// PurgeTransitions deletes those from before a time, but each gateway's newest, which
	// says how it stands.
	PurgeTransitions(before time.Time) error
}

// AuditEntry is one administrative act. It holds no secret. ID is given by the store.
type AuditEntry struct {
	ID     int64         `json:"id"`
	At     time.Time     `json:"at"`
	Tenant core.TenantID `json:"tenant"`
	Who    string        `json:"who"`
	Act    string        `json:"act"`            // "apply", "delete", "release", "wake", …
	Object string        `json:"object"`         // "Gateway/corp-bi"
	Note   string        `json:"note,omitempty"` // what came of it
	Why    string        `json:"why,omitempty"`  // the reason that was given
}

// Access is tokens and the audit log, which is only ever appended to.
type Access interface {
	// PutToken stores the hash of a bearer token and whose it is.
	PutToken(hash []byte, p core.Principal) error
	FindToken(hash []byte) (core.Principal, error)
	CountTokens() (int, error)
	// ReplaceTokens makes a token the only one of a principal.
	ReplaceTokens(hash []byte, p core.Principal) error
	Audit(e AuditEntry) error
	GetAudit(t core.TenantID, id int64) (AuditEntry, error)
	// ListAudit returns the newest entries first; 100 without a limit.
	ListAudit(t core.TenantID, limit int) ([]AuditEntry, error)
	// PurgeAudit deletes the entries from before a time.
	PurgeAudit(before time.Time) error
	// Setting and PutSetting keep small values of the installation, such as its ID.
	Setting(name string) (string, error)
	PutSetting(name, value string) error
}
