package sqlite

import (
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

const defaultLimit = 100

const queryColumns = `id, tenant, user, source, gateway, sql, class, state, started_at, ended_at,
	member, address, rows, bytes, phases, error_class, error_step, error, retried, queued_behind, sql_hash`

func scanQuery(row scanner) (core.Query, error) {
	var q core.Query
	err := row.Scan(&q.ID, &q.Tenant, &q.User, &q.Source, &q.Gateway, &q.SQL, &q.Class, &q.State,
		timeColumn{&q.StartedAt}, timeColumn{&q.EndedAt}, &q.Member, addrColumn{&q.Address}, &q.Rows, &q.Bytes,
		jsonColumn[core.Phase]{&q.Phases}, &q.ErrorClass, &q.ErrorStep, &q.Error, &q.Retried, &q.QueuedBehind, &q.SQLHash)
	return q, err
}

// PutQueries implements store.Queries. The statement is prepared once for all.
func (t *tx) PutQueries(qs []core.Query) error {
	if err := t.usable(); err != nil {
		return err
	}
	if !t.write {
		return errs.New(errs.Internal, "a Read can't write")
	}
	stmt, err := t.conn.PrepareContext(t.quiet, `
		INSERT INTO queries (`+queryColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET user = excluded.user, source = excluded.source, gateway = excluded.gateway,
			sql = excluded.sql, class = excluded.class, state = excluded.state,
			started_at = excluded.started_at, ended_at = excluded.ended_at, member = excluded.member,
			address = excluded.address, rows = excluded.rows, bytes = excluded.bytes, phases = excluded.phases,
			error_class = excluded.error_class, error_step = excluded.error_step, error = excluded.error,
			retried = excluded.retried, queued_behind = excluded.queued_behind, sql_hash = excluded.sql_hash
			WHERE tenant = excluded.tenant`)
	if err != nil {
		return t.failed(err, "store queries")
	}
	defer stmt.Close()
	for _, q := range qs {
		phases, err := jsonText(q.Phases)
		if err != nil {
			return errs.New(errs.Internal, "store query %s: %w", q.ID, err)
		}
		res, err := stmt.ExecContext(t.quiet, q.ID, q.Tenant, q.User, q.Source, q.Gateway, q.SQL, q.Class, q.State,
			nanos(q.StartedAt), nanos(q.EndedAt), q.Member, address(q.Address), q.Rows, q.Bytes, phases, q.ErrorClass, q.ErrorStep, q.Error,
			q.Retried, q.QueuedBehind, q.SQLHash)
		if err != nil {
			return t.failed(err, "store query "+q.ID)
		}
		if n, err := res.RowsAffected(); err == nil && n == 0 {
			return errs.New(errs.Conflict, "query %s of tenant %s can't be stored: another tenant's query has this ID", q.ID, q.Tenant)
		}
	}
	return nil
}

func (t *tx) GetQuery(tenant core.TenantID, id string) (core.Query, error) {
	return one(t, "query "+id, "SELECT "+queryColumns+" FROM queries WHERE tenant = ? AND id = ?", []any{tenant, id}, scanQuery)
}

func (t *tx) ListQueries(tenant core.TenantID, f store.QueryFilter) ([]core.Query, error) {
	where, args := "WHERE tenant = ?", []any{tenant}
	if f.Source != "" {
		where, args = where+" AND source = ?", append(args, f.Source)
	}
	if f.State != "" {
		where, args = where+" AND state = ?", append(args, f.State)
	}
	if !f.Since.IsZero() {
		where, args = where+" AND started_at >= ?", append(args, nanos(f.Since))
	}
	return list(t, "list queries", "SELECT "+queryColumns+" FROM queries "+where+" ORDER BY started_at DESC, id DESC LIMIT ?",
		append(args, limit(f.Limit)), scanQuery)
}

func limit(n int) int {
	if n <= 0 {
		return defaultLimit
	}
	return n
}

func (t *tx) InterruptQueries(at time.Time, reason string) (int64, error) {
	return t.exec("interrupt queries", "UPDATE queries SET state = 'interrupted', ended_at = ?, error = ? WHERE state = 'running'",
		nanos(at), reason)
}

// PurgeQueries implements store.Queries; what still runs stays.
func (t *tx) PurgeQueries(before time.Time) error {
	_, err := t.exec("purge queries", "DELETE FROM queries WHERE started_at < ? AND state <> 'running'", nanos(before))
	return err
}
