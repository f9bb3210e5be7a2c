package postgres

import (
	"context"

	"github.com/apache/arrow-adbc/go/adbc"

	"github.com/sluice-gateway/sluice/internal/catalog"
	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

type pgConnector struct{}

// New returns the connector.
func New() connector.Connector { return pgConnector{} }

func (pgConnector) Descriptor() catalog.Descriptor { return catalog.Postgres }

func (pgConnector) Open(src memberapi.Source, opts connector.Options) (adbc.Database, error) {
	cfg, err := newConfig(src, opts)
	if err != nil {
		return nil, err
	}
	return &database{cfg: cfg, pool: newPool(cfg)}, nil
}

// database is one data source with one credential.
type database struct {
	cfg   *config
	pool  *pool
	descs descriptions
	types typeCache
}

var (
	_ adbc.Database            = (*database)(nil)
	_ connector.Tester         = (*database)(nil)
	_ connector.KeyReader      = (*database)(nil)
	_ connector.TypeInfoReader = (*database)(nil)
	_ connector.TableReader    = (*database)(nil)
)

// SetOptions takes none: parameters come with Open.
func (db *database) SetOptions(opts map[string]string) error {
	for name := range opts {
		return errs.New(errs.Invalid, "%s has no option %s", db.cfg.object, name)
	}
	return nil
}

// Open returns a view on the pool: statements take a connection each time they run.
func (db *database) Open(ctx context.Context) (adbc.Connection, error) {
	return &connection{db: db}, ctx.Err()
}

// Close cancels what runs and ends every connection.
func (db *database) Close() error { return db.pool.close() }

// queryContext ends with ctx, with cancel, and with the database.
func (db *database) queryContext(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(db.pool.life, cancel)
	return ctx, func() { stop(); cancel() }
}

// nobody is the user whom no other query is of.
const nobody = ""

// withConn runs do on a connection that has no past, or that of the user: for this
// package's own queries, which are nobody's, and leave none.
func (db *database) withConn(ctx context.Context, user string, do func(ctx context.Context, c *conn) error) error {
	ctx, cancel := db.queryContext(ctx)
	defer cancel()
	for {
		c, dialled, err := db.pool.acquire(ctx, user)
		if err != nil {
			return err
		}
		if err = c.discardPast(ctx); err == nil {
			err = do(ctx, c)
		}
		lost := c.pg.IsClosed()
		if lost {
			db.pool.discard(c)
		} else {
			db.pool.release(c)
		}
		if lost && dialled == 0 && ctx.Err() == nil {
			continue // the server had closed the pooled connection
		}
		return db.cfg.queryError(ctx, errs.StepExecute, 0, err)
	}
}

// notImplemented is an ability of ADBC that this connector lacks.
func (db *database) notImplemented(what string) error {
	return errs.New(errs.Invalid, "the PostgreSQL connector does not offer %s: %w", what,
		adbc.Error{Code: adbc.StatusNotImplemented, Msg: what}).On(db.cfg.object, "")
}
