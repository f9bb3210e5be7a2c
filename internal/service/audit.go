package service

import (
	"context"
	"strconv"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

// defaultAudits is how many entries of the audit log a list holds by default.
const defaultAudits = 1000

// audit appends an entry about what a principal did. No part of it may hold a secret.
func (s *Service) audit(tx store.Tx, p core.Principal, act, object, note, why string) error {
	return tx.Audit(store.AuditEntry{At: s.now(), Tenant: p.Tenant, Who: p.Name, Act: act, Object: object, Note: note, Why: why})
}

// AuditRecords implements Frontend: the newest first.
func (s *Service) AuditRecords(ctx context.Context, limit int) ([]View, error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	if limit <= 0 {
		limit = defaultAudits
	}
	var entries []store.AuditEntry
	err = s.opts.Store.Read(ctx, func(tx store.Tx) (err error) {
		entries, err = tx.ListAudit(p.Tenant, limit)
		return err
	})
	return viewsOf(KindAudit, entries, func(e store.AuditEntry) string { return strconv.FormatInt(e.ID, 10) }), err
}

// auditRecord finds one entry by its ID.
func (s *Service) auditRecord(ctx context.Context, id string) (View, error) {
	p, err := caller(ctx)
	if err != nil {
		return View{}, err
	}
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return View{}, errs.New(errs.NotFound, "Audit/%s does not exist: entries have numbers", id).On("Audit/"+id, "")
	}
	var entry store.AuditEntry
	err = s.opts.Store.Read(ctx, func(tx store.Tx) (err error) {
		entry, err = tx.GetAudit(p.Tenant, n)
		return err
	})
	return View{Kind: KindAudit, Name: id, Object: entry}, err
}

// purgeAudit deletes what has been kept for long enough.
func (s *Service) purgeAudit(tx store.Tx) error { return tx.PurgeAudit(s.now().Add(-s.opts.KeepAudit)) }

// DefaultKeepAudit is for how long audit entries are kept.
const DefaultKeepAudit = 365 * 24 * time.Hour
