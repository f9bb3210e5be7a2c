package service

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/fleet"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// Document is one resource as it came in, with its kind, undecoded beyond that. The
// service decodes it strictly.
type Document struct {
	Kind core.Kind
	Spec json.RawMessage // the resource's fields; "kind" and "status" in it are ignored
}

// Applied says what an apply did, or would do, to one resource.
type Applied struct {
	Kind   core.Kind   `json:"kind"`
	Name   string      `json:"name"`
	Change core.Change `json:"change"`
}

// ApplyError is why an apply was refused: every problem that was found, each an
// errs.Error with Object ("VirtualNetwork/corp") and Field ("subnets[1].prefix").
// Its class is Invalid, or Conflict if only the stored state stands against it.
type ApplyError struct {
	Problems []*errs.Error
}

// View is an object as the API shows it: its fields, its kind, and its status.
// Marshalled, it is one flat JSON object with "kind" first and "status" last.
// Runtime objects (members, leases, links, hosts, queries, audits) have Status nil.
type View struct {
	Kind   string
	Name   string
	Object any
	Status any
}

// QueryInput is a query as a front end received it.
type QueryInput struct {
	Source  string
	SQL     string
	Class   core.QueryClass // "" means interactive
	Timeout time.Duration   // 0, or more than the class's limit: that limit
	Params  []byte          // Arrow IPC stream of parameter rows, nil for none
	Update  bool            // the number of affected rows is wanted, see memberapi.QueryRequest
	// Traceparent is the client's W3C trace context, "" for none.
	Traceparent string
}

// Result is a result on its way. Exactly one of its readers consumes Body; Finish
// must be called once, whatever happened, and ends the query's record.
type Result struct {
	QueryID string
	// Body is the member's Arrow IPC stream, undecoded. It ends in io.EOF only when
	// the result is whole (end-of-stream marker seen, member's status ok); otherwise
	// Read returns the error that the member, or the tunnel, gave. If it has a method
	// Arrived() bool, that says that reading on will not wait.
	Body io.ReadCloser
	// Stall is for how long the client may take nothing of it before it is cut off. 0: as
	// the front end thinks fit.
	Stall time.Duration
	// Finish records how the query ended: err is nil if the client has everything;
	// an error from Body, or the front end's own (the client went away). It returns
	// the finished record.
	Finish func(err error) core.Query
}

// Frontend is what the query and resource front ends need of the service. Every
// method but Authenticate and Ready reads the principal from the context, and refuses
// without one and one whose role may not do it.
type Frontend interface {
	Apply(ctx context.Context, docs []Document, dryRun bool) ([]Applied, error)
	// AwaitHosts waits until the hosts that run members of the tenant have acted on what was
	// applied last, or for so long, and tells how far each is then.
	AwaitHosts(ctx context.Context, most time.Duration) ([]fleet.Acting, error)
	Get(ctx context.Context, kind, name string) (View, error)
	List(ctx context.Context, kind string) ([]View, error)
	Delete(ctx context.Context, kind, name string, how DeleteOptions) error
	// DeleteAll deletes several declared resources in one change.
	DeleteAll(ctx context.Context, in DeleteSet) ([]Applied, error)

	// Query runs a statement on a member, waking one if need be, and returns once the
	// first bytes of the result, or the error, are there.
	Query(ctx context.Context, in QueryInput) (*Result, error)
	// Prepare describes a statement.
	Prepare(ctx context.Context, in QueryInput) (memberapi.PrepareResponse, error)
	// Metadata streams a source's description; Source and QueryID of req are filled in.
	Metadata(ctx context.Context, source string, req memberapi.MetadataRequest) (*Result, error)

	Wake(ctx context.Context, gateway string) error
	Pause(ctx context.Context, gateway string) error
	Restart(ctx context.Context, gateway string) error
	TestDataSource(ctx context.Context, name string) (memberapi.TestResponse, error)
	Check(ctx context.Context, in core.Check) (core.CheckResult, error)
	QueryRecord(ctx context.Context, id string) (core.Query, error)
	QueryRecords(ctx context.Context, source string, limit int) ([]core.Query, error)
	// CancelQuery ends a query that runs or waits.
	CancelQuery(ctx context.Context, id string) error
	// AuditRecords lists what was changed, by whom and why, the newest first.
	AuditRecords(ctx context.Context, limit int) ([]View, error)

	// RenewToken makes a new administrator's token, which replaces the one that there is.
	RenewToken(ctx context.Context) (core.Secret, error)
	// Authenticate finds the principal of a bearer token.
	Authenticate(ctx context.Context, token string) (core.Principal, error)
	// Ready tells why the service can't serve, or nil.
	Ready(ctx context.Context) error
}
