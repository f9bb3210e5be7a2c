package postgres

import (
	"context"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// Test implements connector.Tester on a connection of its own.
func (db *database) Test(ctx context.Context, step func(name string, d time.Duration, detail string)) error {
	ctx, cancel := db.queryContext(ctx)
	defer cancel()
	session, err := db.cfg.dial(ctx, step)
	if err != nil {
		return err
	}
	c := newConn(db.pool, session)
	defer c.kill()
	start := time.Now()
	if _, err := c.query(ctx, "select 1"); err != nil {
		return db.cfg.queryError(ctx, errs.StepExecute, 0, err)
	}
	step(errs.StepExecute, time.Since(start), "PostgreSQL "+session.pg.ParameterStatus("server_version"))
	return nil
}
