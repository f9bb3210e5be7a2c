// Package memberapi is the protocol that the service speaks to a member: HTTP/1.1 on
// connections that the member dialled, requests as JSON, results as Arrow IPC
// streams. The service and the gateway import it; it holds types and names, no code
// of either side.
//
// Every result-bearing request is answered with status 200, a chunked Arrow IPC
// stream (schema first, then record batches, then the end-of-stream marker) and,
// after the body, the trailer Status. A result is whole only if the end-of-stream
// marker came and Status says "ok". A failure before the first byte is answered with
// the error's HTTP status and an errs.Error as JSON; a failure later ends the body
// without an end-of-stream marker and puts the error into the trailer Error.
package memberapi

import (
	"log/slog"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// Protocols that a member and a host negotiate over ALPN on the service's hosts
// address. On data connections the service is the HTTP client.
const (
	ProtoHTTP    = "http/1.1"         // join and renew: the dialling side is the HTTP client
	ProtoHost    = "sluice-host/1"    // a host's goal-state stream
	ProtoControl = "sluice-control/1" // a member's control connection
	ProtoData    = "sluice-data/1"    // a member's parked connection
)

// Paths of the member's HTTP server, all POST.
const (
	PathQuery    = "/query"    // QueryRequest → Arrow IPC stream
	PathMetadata = "/metadata" // MetadataRequest → Arrow IPC stream in Flight SQL's schemas
	PathPrepare  = "/prepare"  // QueryRequest → PrepareResponse
	PathTest     = "/test"     // SourceRequest → TestResponse
	PathProbe    = "/probe"    // ProbeRequest → core.Probe
)

// Trailers (and, for an early failure, nothing: the body carries the error).
const (
	TrailerStatus = "Sluice-Status" // "ok" or "error"
	TrailerError  = "Sluice-Error"  // errs.Error as JSON on one line
	TrailerStats  = "Sluice-Stats"  // Stats as JSON on one line
)

// StatusOK is the value of TrailerStatus after a whole result.
const StatusOK = "ok"

// Source is a data source together with its credentials, as a member needs it. It
// exists only inside the TLS connection between service and member and in their
// memory: it is never stored or logged.
type Source struct {
	Name       string            `json:"name"`
	Type       string            `json:"type"`
	Parameters map[string]string `json:"parameters,omitempty"`
	ReadOnly   bool              `json:"readOnly"`
	// DNSServers, as host:port, resolve the source's name in place of Boot.DNSServers.
	DNSServers []string            `json:"dnsServers,omitempty"`
	Credential core.CredentialKind `json:"credential,omitempty"`
	Username   string              `json:"username,omitempty"`
	// Password is in the clear here: see the type's comment. LogValue and String hide it.
	Password string `json:"password,omitempty"`
}

// String implements fmt.Stringer without the secret.
func (s Source) String() string { return s.Type + " data source " + s.Name }

// GoString implements fmt.GoStringer without the secret.
func (s Source) GoString() string { return s.String() }

// LogValue implements slog.LogValuer without the secret: a JSON handler would marshal it.
func (s Source) LogValue() slog.Value { return slog.StringValue(s.String()) }

// QueryRequest asks a member to run, or to prepare, a statement.
type QueryRequest struct {
	QueryID string `json:"queryId"`
	Source  Source `json:"source"`
	// Session is equal in the requests of one user, and in no others: a connector may
	// let what one query leaves in its session be seen by the next for a moment. Empty:
	// never.
	Session string `json:"session,omitempty"`
	SQL     string `json:"sql"`
	// Params is an Arrow IPC stream of parameter rows, nil for none. A query runs
	// once for each row; the results follow each other in one stream.
	Params []byte `json:"params,omitempty"`
	// Update asks for the number of affected rows in place of a result: the answer's
	// stream has one int64 column "rows" (-1 where the source does not say).
	Update bool `json:"update,omitempty"`
	// MaxRows ends the query with an Exhausted error past that many rows. 0: no limit.
	MaxRows int64 `json:"maxRows,omitempty"`
	// TimeoutMS bounds the whole request; 0: no bound.
	TimeoutMS int64 `json:"timeoutMs,omitempty"`
}

// Stats tells how a query went inside the member.
type Stats struct {
	Rows      int64         `json:"rows"`
	Connect   time.Duration `json:"connectNs"` // 0 where a pooled connection served
	Execute   time.Duration `json:"executeNs"` // sent → first row, or the end, came back
	Stream    time.Duration `json:"streamNs"`  // first row → the last byte written
	PeakBytes int64         `json:"peakBytes"` // the member's own peak resident memory so far
}

// PrepareResponse describes a statement. The schemas are Arrow IPC encapsulated
// schema messages. Dataset is nil for a statement that returns no rows.
type PrepareResponse struct {
	Dataset []byte `json:"dataset,omitempty"`
	Params  []byte `json:"params,omitempty"`
}

// The kinds of MetadataRequest, each answered in the schema that Flight SQL defines.
const (
	MetaCatalogs       = "catalogs"
	MetaSchemas        = "schemas"
	MetaTables         = "tables"
	MetaTableTypes     = "table-types"
	MetaPrimaryKeys    = "primary-keys"
	MetaExportedKeys   = "exported-keys"
	MetaImportedKeys   = "imported-keys"
	MetaCrossReference = "cross-reference"
	MetaTypeInfo       = "type-info"
)

// MetadataRequest asks for a source's own description. Patterns are SQL LIKE
// patterns, nil for any.
type MetadataRequest struct {
	QueryID       string   `json:"queryId"`
	Source        Source   `json:"source"`
	Session       string   `json:"session,omitempty"` // as in QueryRequest
	Kind          string   `json:"kind"`
	Catalog       *string  `json:"catalog,omitempty"`
	SchemaPattern *string  `json:"schemaPattern,omitempty"`
	TablePattern  *string  `json:"tablePattern,omitempty"`
	TableTypes    []string `json:"tableTypes,omitempty"`
	IncludeSchema bool     `json:"includeSchema,omitempty"`
	// Table is the table of a keys request; Other the referencing one of a cross reference.
	Table    TableRef `json:"table,omitzero"`
	Other    TableRef `json:"other,omitzero"`
	DataType *int32   `json:"dataType,omitempty"` // for MetaTypeInfo
}

// TableRef names a table exactly. Nil parts are not compared.
type TableRef struct {
	Catalog *string `json:"catalog,omitempty"`
	Schema  *string `json:"schema,omitempty"`
	Table   string  `json:"table"`
}

// SourceRequest asks for a test of a data source.
type SourceRequest struct {
	Source    Source `json:"source"`
	TimeoutMS int64  `json:"timeoutMs,omitempty"`
}

// TestResponse lists the steps of a test as far as they came; the last one carries
// the error, if any.
type TestResponse struct {
	Steps []TestStep `json:"steps"`
}

// TestStep is one step of a test, named by an errs.Step constant.
type TestStep struct {
	Name     string        `json:"name"`
	Duration time.Duration `json:"durationNs"`
	Detail   string        `json:"detail,omitempty"` // "10.20.1.4", "TLS 1.3, CN=…", "PostgreSQL 15.18"
	Error    string        `json:"error,omitempty"`
	Hint     string        `json:"hint,omitempty"`
	Class    errs.Class    `json:"class,omitempty"`    // with Error
	SQLState string        `json:"sqlState,omitempty"` // with Error: the data source's own
}

// ProbeRequest asks for one TCP connection from the member, without data.
type ProbeRequest struct {
	Host      string `json:"host"` // a name or an address
	Port      uint16 `json:"port"`
	TimeoutMS int64  `json:"timeoutMs,omitempty"`
}

// Boot is what a host hands to a member at injection, as JSON on file descriptor 3:
// never in an argument, an environment variable or a file.
type Boot struct {
	Member      string   `json:"member"`
	Generation  int64    `json:"generation"`
	Relay       string   `json:"relay"`       // host:port of the relay on the tunnel
	ServiceName string   `json:"serviceName"` // the name in the service's certificate
	ServiceCA   string   `json:"serviceCa"`   // PEM
	JoinToken   string   `json:"joinToken"`   // one-time, in the clear: see above
	DNSServers  []string `json:"dnsServers"`  // host:port, the VNet's resolver
	MemoryMiB   int64    `json:"memoryMiB"`   // the cgroup's limits, these two
	CPUs        float64  `json:"cpus"`
	Parked      int      `json:"parked"` // connections to keep parked at the service
}

// JoinRequest asks the service for a first certificate (POST PathJoin, no client
// certificate), RenewRequest for the next (POST PathRenew, with the present one).
type JoinRequest struct {
	Role  string `json:"role"` // RoleMember or RoleHost
	Name  string `json:"name"` // the member's ID or the host's name
	Token string `json:"token"`
	CSR   []byte `json:"csr"` // DER
}

// RenewRequest asks for a new certificate for the identity of the present one.
type RenewRequest struct {
	CSR []byte `json:"csr"` // DER
}

// CertResponse answers both.
type CertResponse struct {
	Certificate []byte    `json:"certificate"` // DER, signed by the service's CA
	NotAfter    time.Time `json:"notAfter"`
	// Lifetime is how long that is from now, whatever the receiver's clock says.
	Lifetime time.Duration `json:"lifetimeNs,omitempty"`
}

// Paths of the service's hosts address over ProtoHTTP, and the roles that join.
const (
	PathJoin  = "/v1/join"
	PathRenew = "/v1/renew"

	RoleMember = "member"
	RoleHost   = "host"
)
