package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// errConnectTimeout is the cause of a context that ended by the source's connectTimeout,
// in contrast to the caller's own deadline.
var errConnectTimeout = errors.New("connect timeout")

// sourceError is what the data source said or did, other than an SQL error.
func (c *config) sourceError(step, message string) *errs.Error {
	return errs.New(errs.Source, "%s", message).WithStep(step).On(c.object, "")
}

// unreachable is a data source that could not be reached, or went away.
func (c *config) unreachable(step, what string, err error) *errs.Error {
	e := errs.New(errs.Unavailable, "%s: %s", what, reason(err)).WithStep(step).On(c.object, "")
	if step == errs.StepConnect {
		return e.WithHint("check that the server listens there, and that the subnet's rules and routes let the gateway reach it")
	}
	return e
}

// interrupted is a step that a context ended.
func (c *config) interrupted(ctx context.Context, step, what string) *errs.Error {
	if errors.Is(context.Cause(ctx), errConnectTimeout) {
		return c.unreachable(step, what, fmt.Errorf("timed out after %v", c.timeout))
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return errs.New(errs.Cancelled, "%s: cancelled: %w", what, ctx.Err()).WithStep(step).On(c.object, "")
	}
	return errs.New(errs.Timeout, "%s: the time for it was up: %w", what, ctx.Err()).WithStep(step).On(c.object, "")
}

// serverError is an error that the server reported.
func (c *config) serverError(step string, pg *pgconn.PgError) *errs.Error {
	e := errs.New(errs.Source, "%s", pg.Message).WithStep(step).On(c.object, "")
	e.SQLState, e.Position = pg.Code, int(pg.Position)
	var hints []string
	for _, h := range []string{pg.Detail, pg.Hint, ownHint(pg, c.readOnly)} {
		if h != "" {
			hints = append(hints, h)
		}
	}
	e.Hint = strings.Join(hints, "; ")
	return e
}

// ownHint adds what the server cannot know.
func ownHint(pg *pgconn.PgError, readOnly bool) string {
	switch {
	case pg.Code == "25006" && readOnly:
		return "the data source is read-only: an administrator can set readOnly: false"
	case pg.Code == "28P01" || pg.Code == "28000":
		return "check the data source's credentials, and what the server's pg_hba.conf allows"
	case pg.Code == "3D000":
		return "check the data source's parameter database"
	case pg.Code == "42601" && strings.Contains(pg.Message, "multiple commands"):
		return "send one statement per query"
	}
	return ""
}

// queryError turns an error during a query into one for the user. rows is how many
// came before it.
func (c *config) queryError(ctx context.Context, step string, rows int64, err error) error {
	var known *errs.Error
	var pgErr *pgconn.PgError
	var tooLong *pgproto3.ExceededMaxBodyLenErr
	switch {
	case err == nil, err == io.EOF, errors.As(err, &known):
		return err
	case ctx.Err() != nil:
		return c.interrupted(ctx, step, "query on "+c.host)
	case errors.As(err, &pgErr):
		return c.serverError(step, pgErr)
	case errors.As(err, &tooLong):
		return c.sourceError(step, fmt.Sprintf("a row of %d MiB; the limit is %d MiB", tooLong.ActualBodyLen>>20, maxMessage>>20)).
			WithHint("select less of it, with substring for instance")
	case isLostConnection(err):
		return errs.New(errs.Unavailable, "the data source closed the connection after %d rows: %s", rows, reason(err)).
			WithStep(step).On(c.object, "")
	}
	return c.sourceError(step, fmt.Sprintf("the data source broke the protocol after %d rows: %v", rows, err))
}

func isLostConnection(err error) bool {
	var netErr *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, pgconn.ErrConnClosed) || errors.As(err, &netErr)
}
