package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

var _ store.Store = (*Store)(nil)

// Options configure Open.
type Options struct {
	// Path of the database file, which is made if it is missing. Required. Its folder
	// must exist; the write-ahead log stands beside it.
	Path string
	// Logger gets a line per migration. Default: none is written.
	Logger *slog.Logger
	// Now tells when a member was seen to be gone. Default: time.Now.
	Now func() time.Time
}

// Store is a store.Store in one file.
type Store struct {
	path   string
	log    *slog.Logger
	now    func() time.Time
	writer *sql.DB // one connection
	reader *sql.DB
}

// Read implements store.Store.
func (s *Store) Read(ctx context.Context, fn func(store.Tx) error) error {
	return s.run(ctx, s.reader, "BEGIN", fn)
}

// Write implements store.Store.
func (s *Store) Write(ctx context.Context, fn func(store.Tx) error) error {
	return s.run(ctx, s.writer, "BEGIN IMMEDIATE", fn)
}

// run works on a connection rather than a sql.Tx: after a COMMIT that failed, sql.Tx
// would give the connection back with the transaction still open.
func (s *Store) run(ctx context.Context, db *sql.DB, begin string, fn func(store.Tx) error) (err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return s.wrap(err, "open "+s.path)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, begin); err != nil {
		return s.wrap(err, "begin a transaction")
	}
	// A statement of ours is short. Interrupting one would end the whole transaction,
	// so a context that is done is noticed between statements.
	t := &tx{ctx: ctx, quiet: context.WithoutCancel(ctx), conn: conn, store: s, write: db == s.writer}
	committed := false
	defer func() {
		t.over = true
		if !committed {
			s.rollback(conn)
		}
	}()
	if err := fn(t); err != nil {
		return err
	}
	if err := t.usable(); err != nil {
		return err
	}
	if _, err := conn.ExecContext(t.quiet, "COMMIT"); err != nil {
		return s.wrap(err, "commit")
	}
	committed = true
	return nil
}

// rollback leaves the connection without a transaction, or throws it away.
func (s *Store) rollback(conn *sql.Conn) {
	_, err := conn.ExecContext(context.Background(), "ROLLBACK")
	if err == nil || strings.Contains(err.Error(), "no transaction is active") {
		return // SQLite rolls back by itself after some errors
	}
	s.log.Warn("a transaction could not be rolled back: its connection is closed", "path", s.path, "error", err)
	_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // ErrBadConn makes the pool drop it
}

// Close implements store.Store. It waits for what is running, and moves the write-ahead
// log into the file.
func (s *Store) Close() error {
	err := s.reader.Close()
	if e := s.writer.Close(); err == nil {
		err = e
	}
	if err != nil {
		return s.wrap(err, "close")
	}
	return nil
}

// tx implements store.Tx.
type tx struct {
	ctx   context.Context // the caller's
	quiet context.Context // the same, never done
	conn  *sql.Conn
	store *Store
	write bool
	over  bool
	// broken is an error after which SQLite may have ended the transaction by itself.
	// Statements after it would each commit alone, so there must be none.
	broken error
}

var _ store.Tx = (*tx)(nil)

// usable tells why no further statement may run.
func (t *tx) usable() error {
	switch {
	case t.over:
		return errs.New(errs.Internal, "a transaction was used after its end")
	case t.broken != nil:
		return t.broken
	case t.ctx.Err() != nil:
		return errs.As(context.Cause(t.ctx))
	}
	return nil
}

// failed gives an error its class, and notes one that ends the transaction.
func (t *tx) failed(err error, doing string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return err
	}
	wrapped := t.store.wrap(err, doing)
	if !isConstraint(err) {
		t.broken = wrapped
	}
	return wrapped
}

// exec runs a statement that changes something and returns the number of rows.
func (t *tx) exec(doing, query string, args ...any) (int64, error) {
	if err := t.usable(); err != nil {
		return 0, err
	}
	if !t.write {
		return 0, errs.New(errs.Internal, "%s: a Read can't write", doing)
	}
	res, err := t.conn.ExecContext(t.quiet, query, args...)
	if err != nil {
		return 0, t.failed(err, doing)
	}
	return res.RowsAffected()
}

// scanner is a row of a result.
type scanner interface{ Scan(dest ...any) error }

// row reads one row; sql.ErrNoRows comes through as it is.
func (t *tx) row(doing, query string, args []any, dest ...any) error {
	if err := t.usable(); err != nil {
		return err
	}
	if err := t.conn.QueryRowContext(t.quiet, query, args...).Scan(dest...); err != nil {
		return t.failed(err, doing)
	}
	return nil
}

// list reads all rows of a query.
func list[T any](t *tx, doing, query string, args []any, scan func(scanner) (T, error)) ([]T, error) {
	if err := t.usable(); err != nil {
		return nil, err
	}
	rows, err := t.conn.QueryContext(t.quiet, query, args...)
	if err != nil {
		return nil, t.failed(err, doing)
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, t.failed(err, doing)
		}
		out = append(out, v)
	}
	if err := rows.Err(); err != nil {
		return nil, t.failed(err, doing)
	}
	return out, nil
}

// one reads the first row of a query, or gives NotFound about the object.
func one[T any](t *tx, object, query string, args []any, scan func(scanner) (T, error)) (T, error) {
	found, err := list(t, "read "+object, query, args, scan)
	if err != nil || len(found) == 0 {
		var none T
		if err == nil {
			err = errs.New(errs.NotFound, "there is no %s", object).On(object, "")
		}
		return none, err
	}
	return found[0], nil
}
