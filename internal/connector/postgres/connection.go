package postgres

import (
	"context"
	"strings"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// connection is ADBC's connection: a view on the pool without a session of its own.
type connection struct {
	db   *database
	user string // whose queries come, nobody if that was not said
}

var (
	_ adbc.Connection     = (*connection)(nil)
	_ connector.UserAware = (*connection)(nil)
)

// SetUser implements connector.UserAware.
func (c *connection) SetUser(id string) { c.user = id }

func (c *connection) NewStatement() (adbc.Statement, error) {
	return &statement{db: c.db, user: c.user}, nil
}

func (c *connection) Close() error { return nil }

func (c *connection) Commit(context.Context) error {
	return c.db.notImplemented("transactions of several statements")
}

func (c *connection) Rollback(context.Context) error {
	return c.db.notImplemented("transactions of several statements")
}

func (c *connection) ReadPartition(context.Context, []byte) (array.RecordReader, error) {
	return nil, c.db.notImplemented("partitioned results")
}

// GetTableSchema returns the schema that a query for all columns has.
func (c *connection) GetTableSchema(ctx context.Context, catalog, dbSchema *string, table string) (*arrow.Schema, error) {
	if catalog != nil && *catalog != "" && *catalog != c.db.cfg.database {
		return nil, errs.New(errs.NotFound, "%s reaches the database %s only, not %s", c.db.cfg.object, c.db.cfg.database, *catalog)
	}
	name := quoteIdent(table)
	if dbSchema != nil && *dbSchema != "" {
		name = quoteIdent(*dbSchema) + "." + name
	}
	st := &statement{db: c.db, user: c.user, sql: "select * from " + name}
	return st.ExecuteSchema(ctx)
}

func quoteIdent(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
