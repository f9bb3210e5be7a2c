package sqlite

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

// PutToken implements store.Access. The same token for the same principal is no
// change, for another one a conflict.
func (t *tx) PutToken(hash []byte, p core.Principal) error {
	_, err := t.exec("store a token", "INSERT INTO tokens (hash, tenant, name, role) VALUES (?, ?, ?, ?)", hash, p.Tenant, p.Name, p.Role)
	if !isUnique(err) {
		return err
	}
	other, err := t.FindToken(hash)
	if err != nil || other == p {
		return err
	}
	return errs.New(errs.Conflict, "the token of %s in tenant %s is that of %s in tenant %s already", p.Name, p.Tenant, other.Name, other.Tenant)
}

func (t *tx) FindToken(hash []byte) (core.Principal, error) {
	var p core.Principal
	err := t.row("find a token", "SELECT tenant, name, role FROM tokens WHERE hash = ?", []any{bytes.Clone(hash)}, &p.Tenant, &p.Name, &p.Role)
	if errors.Is(err, sql.ErrNoRows) {
		return p, errs.New(errs.NotFound, "there is no such token")
	}
	return p, err
}

func (t *tx) CountTokens() (int, error) {
	var n int
	err := t.row("count tokens", "SELECT count(*) FROM tokens", nil, &n)
	return n, err
}

// ReplaceTokens implements store.Access.
func (t *tx) ReplaceTokens(hash []byte, p core.Principal) error {
	if _, err := t.exec("remove tokens", "DELETE FROM tokens WHERE tenant = ? AND name = ?", p.Tenant, p.Name); err != nil {
		return err
	}
	return t.PutToken(hash, p)
}

func (t *tx) Audit(e store.AuditEntry) error {
	_, err := t.exec("write the audit log", "INSERT INTO audit (at, tenant, who, act, object, note, why) VALUES (?, ?, ?, ?, ?, ?, ?)",
		nanos(e.At), e.Tenant, e.Who, e.Act, e.Object, e.Note, e.Why)
	return err
}

const auditColumns = "id, at, tenant, who, act, object, note, why"

func scanAudit(row scanner) (store.AuditEntry, error) {
	var e store.AuditEntry
	err := row.Scan(&e.ID, timeColumn{&e.At}, &e.Tenant, &e.Who, &e.Act, &e.Object, &e.Note, &e.Why)
	return e, err
}

func (t *tx) GetAudit(tenant core.TenantID, id int64) (store.AuditEntry, error) {
	return one(t, fmt.Sprintf("audit entry %d", id), "SELECT "+auditColumns+" FROM audit WHERE tenant = ? AND id = ?", []any{tenant, id}, scanAudit)
}

// ListAudit implements store.Access, newest first; 100 entries without a limit.
func (t *tx) ListAudit(tenant core.TenantID, n int) ([]store.AuditEntry, error) {
	return list(t, "read the audit log", "SELECT "+auditColumns+" FROM audit WHERE tenant = ? ORDER BY id DESC LIMIT ?",
		[]any{tenant, limit(n)}, scanAudit)
}

// PurgeAudit implements store.Access. The schema lets entries go only from before the
// time that this setting names.
func (t *tx) PurgeAudit(before time.Time) error {
	if err := t.PutSetting("audit.kept-since", strconv.FormatInt(nanos(before), 10)); err != nil {
		return err
	}
	_, err := t.exec("purge the audit log", "DELETE FROM audit WHERE at < ?", nanos(before))
	return err
}

func (t *tx) Setting(name string) (string, error) {
	var v string
	err := t.row("read setting "+name, "SELECT value FROM settings WHERE name = ?", []any{name}, &v)
	if errors.Is(err, sql.ErrNoRows) {
		return "", errs.New(errs.NotFound, "there is no setting %s", name)
	}
	return v, err
}

func (t *tx) PutSetting(name, value string) error {
	_, err := t.exec("store setting "+name, "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", name, value)
	return err
}
