// Package connector is the contract of the code that talks to one type of data
// source. Connectors run inside members only.
//
// A connector's Open gives an adbc.Database, so that an existing ADBC driver drops in
// with a descriptor and a few lines. Optional abilities are interfaces of their own:
// Tester, KeyReader, TypeInfoReader on the database, and Timed on a statement. all/
// is the explicit registry; connectortest/ the suite that every connector must pass.
//
// Rules that every connector keeps:
//   - Errors are *errs.Error: with Step (resolve, connect, tls, sign-in, execute,
//     stream), class Source for what the data source said (SQLSTATE, message and
//     position kept), Unavailable for what could not be reached, Invalid for a bad
//     parameter, Timeout and Cancelled from the context. None contains a credential.
//   - ExecuteQuery returns once the first batch, the end, or an error is known, and
//     the reader pulls from the source only as it is read (two batches ahead at the
//     most), so that memory stays flat and back-pressure reaches the source.
//   - Cancelling the context ends the work in the data source itself.
//   - Connections are pooled per credential; nothing that a query sets in its session
//     is seen by another user's (UserAware).
package connector

import (
	"context"
	"time"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/sluice-gateway/sluice/internal/catalog"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// Options are what a member gives to every database that it opens.
type Options struct {
	// Resolve returns the addresses of a name; required. It asks the VNet's resolver, and its
	// errors name the servers that were asked.
	Resolve func(ctx context.Context, host string) ([]string, error)
	// MaxConns bounds the pool to one data source. Default 32.
	MaxConns int
}

// Connector is one type of data source.
type Connector interface {
	Descriptor() catalog.Descriptor
	// Open checks the source's parameters and prepares a pool; it does not connect.
	Open(src memberapi.Source, opts Options) (adbc.Database, error)
}

// Tester is a database that can tell how a connection comes about, step by step.
type Tester interface {
	// Test makes a new connection, calls step at the end of each step that succeeded,
	// and returns the error of the one that failed.
	Test(ctx context.Context, step func(name string, d time.Duration, detail string)) error
}

// KeyReader is a database that can list keys in the schemas of Flight SQL. pk and fk
// select as in memberapi.MetadataRequest; either may be nil.
type KeyReader interface {
	PrimaryKeys(ctx context.Context, table memberapi.TableRef) (arrow.RecordBatch, error)
	ForeignKeys(ctx context.Context, pk, fk *memberapi.TableRef) (arrow.RecordBatch, error)
}

// TypeInfoReader is a database that can list its types in the schema of Flight SQL's
// CommandGetXdbcTypeInfo.
type TypeInfoReader interface {
	TypeInfo(ctx context.Context, dataType *int32) (arrow.RecordBatch, error)
}

// TableReader is a database that can list tables with their Arrow schemas in one go.
type TableReader interface {
	Tables(ctx context.Context, req memberapi.MetadataRequest) (array.RecordReader, error)
}

// UserAware is an adbc.Connection that shares sessions with the data source between
// queries, and does so more readily between those of one user.
type UserAware interface {
	// SetUser says whose queries follow, by a name that means nothing to the connector.
	// Without it, or with "", each query counts as another user's.
	SetUser(id string)
}

// Timed is a statement that can tell how long the last execution took in its parts.
type Timed interface {
	// Timings are known once ExecuteQuery has returned: connect is 0 if a pooled
	// connection served.
	Timings() (connect, execute time.Duration)
}
