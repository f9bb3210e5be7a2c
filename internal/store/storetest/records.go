package storetest

import (
	"fmt"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

func hosts() map[string]func(h *harness) {
	host := core.Host{Name: "h1", Connected: true, GoalVersion: 3, SeenVersion: 2, LastSeen: now(), Problems: []string{"a", "b"}}
	next := func(h *harness, name string) (v int64) {
		h.Helper()
		h.write(func(tx store.Tx) (err error) { v, err = tx.NextGoalVersion(name); return err })
		return v
	}
	return map[string]func(h *harness){
		"a host comes back whole": func(h *harness) {
			h.write(func(tx store.Tx) error { return tx.PutHost(core.Host{Name: "h2"}) })
			h.write(func(tx store.Tx) error { return tx.PutHost(host) })
			h.read(func(tx store.Tx) error {
				got, err := tx.ListHosts()
				h.same([]core.Host{host, {Name: "h2"}}, got)
				return err
			})
		},
		"it is noted in which version networks changed": func(h *harness) {
			next(h, "h1")
			mark := func(tx store.Tx) error { return tx.MarkNetworks("h1") }
			h.write(mark)
			next(h, "h1")
			h.write(func(tx store.Tx) error { return tx.PutHost(host) }) // knows nothing of it
			h.read(func(tx store.Tx) error {
				got, err := tx.ListHosts()
				if len(got) != 1 || got[0].NetworksVersion != 1 || got[0].GoalVersion != 3 {
					h.Errorf("%+v, want networks of version 1", got)
				}
				return err
			})
			if err := h.store.Read(h.ctx(), mark); err == nil {
				h.Error("a Read has noted it")
			}
		},
		"goal versions only grow": func(h *harness) {
			if a, b := next(h, "h1"), next(h, "h1"); a != 1 || b != 2 {
				h.Errorf("%d, then %d", a, b)
			}
			if c := next(h, "h2"); c != 1 {
				h.Errorf("another host begins with %d", c)
			}
			h.write(func(tx store.Tx) error { return tx.PutHost(host) })
			if v := next(h, "h1"); v != 4 {
				h.Errorf("%d follows 3", v)
			}
			h.write(func(tx store.Tx) error { return tx.PutHost(host) }) // knows of 3 only
			if v := next(h, "h1"); v != 5 {
				h.Errorf("%d follows 4", v)
			}
		},
	}
}

func query(id string, started time.Time) core.Query {
	return core.Query{
		ID: id, Tenant: tenant, User: "u", Source: "orders", Gateway: "g", SQL: "select 'ü\x00'", Class: core.ClassInteractive,
		State: core.QuerySucceeded, StartedAt: started, EndedAt: started.Add(time.Second), Member: "m-1", Address: addr(4),
		Rows: 1 << 40, Bytes: 1 << 50, Phases: []core.Phase{{Name: core.PhaseQueued, Duration: 5}, {Name: core.PhaseStreamed, Duration: time.Hour}},
		ErrorStep: "execute", Error: "because", Retried: "member m-0: lost", QueuedBehind: 3, SQLHash: "sha256:ab",
	}
}

func putQueries(qs ...core.Query) func(store.Tx) error {
	return func(tx store.Tx) error { return tx.PutQueries(qs) }
}

func queries() map[string]func(h *harness) {
	return map[string]func(h *harness){
		"a query comes back whole and is replaced by ID": func(h *harness) {
			full, bare := query("a", now()), core.Query{ID: "a", Tenant: tenant, State: core.QueryRunning, StartedAt: now()}
			for _, q := range []core.Query{bare, full, bare} {
				h.write(putQueries(q))
				h.read(func(tx store.Tx) error {
					got, err := tx.GetQuery(tenant, "a")
					h.same(q, got)
					return err
				})
			}
			h.missing(func(tx store.Tx) error { _, err := tx.GetQuery(tenant, "b"); return err })
			h.write(putQueries())
		},
		"a query is its tenant's": func(h *harness) {
			h.write(putQueries(query("a", now())))
			other := query("a", now())
			other.Tenant = "t2"
			h.refused(errs.Conflict, putQueries(other), "a", "t2")
			h.missing(func(tx store.Tx) error { _, err := tx.GetQuery("t2", "a"); return err })
			h.read(func(tx store.Tx) error {
				got, err := tx.ListQueries("t2", store.QueryFilter{})
				h.same([]core.Query(nil), got)
				return err
			})
		},
		"queries are listed newest first and filtered": func(h *harness) {
			var all []core.Query
			for i := range 150 {
				all = append(all, query(fmt.Sprintf("q%03d", i), now().Add(time.Duration(-i)*time.Second)))
			}
			all[1].Source = "other"
			all[2].State = core.QueryFailed
			h.write(putQueries(all...))
			for _, c := range []struct {
				filter store.QueryFilter
				want   []core.Query
			}{
				{store.QueryFilter{}, all[:100]},
				{store.QueryFilter{Limit: 120}, all[:120]},
				{store.QueryFilter{Source: "other"}, all[1:2]},
				{store.QueryFilter{State: core.QueryFailed}, all[2:3]},
				{store.QueryFilter{Since: all[1].StartedAt}, all[:2]},
				{store.QueryFilter{Source: "orders", State: core.QuerySucceeded, Since: all[5].StartedAt, Limit: 2}, []core.Query{all[0], all[3]}},
			} {
				h.read(func(tx store.Tx) error {
					got, err := tx.ListQueries(tenant, c.filter)
					h.same(c.want, got)
					return err
				})
			}
		},
	}
}

func queryEnds() map[string]func(h *harness) {
	return map[string]func(h *harness){
		"running queries are interrupted, whoever's": func(h *harness) {
			running, other, done := query("a", now()), query("b", now()), query("c", now())
			running.State, other.State, other.Tenant = core.QueryRunning, core.QueryRunning, "t2"
			h.write(putQueries(running, other, done))
			end := now().Add(time.Hour)
			h.write(func(tx store.Tx) error {
				n, err := tx.InterruptQueries(end, "the service stopped")
				h.same(int64(2), n)
				return err
			})
			running.State, running.EndedAt, running.Error = core.QueryInterrupted, end, "the service stopped"
			h.read(func(tx store.Tx) error {
				got, err := tx.GetQuery(tenant, "a")
				h.same(running, got)
				got, _ = tx.GetQuery(tenant, "c")
				h.same(done, got)
				return err
			})
		},
		"old queries are purged, running ones are not": func(h *harness) {
			old, running, young := query("a", now()), query("b", now()), query("c", now().Add(time.Hour))
			running.State = core.QueryRunning
			h.write(putQueries(old, running, young))
			h.write(func(tx store.Tx) error { return tx.PurgeQueries(now().Add(time.Minute)) })
			h.read(func(tx store.Tx) error {
				got, err := tx.ListQueries(tenant, store.QueryFilter{})
				h.same([]core.Query{young, running}, got)
				return err
			})
		},
		"a query of an unknown state is refused, and its batch": func(h *harness) {
			bad := query("b", now())
			bad.State = "lost"
			h.refused(errs.Internal, putQueries(query("a", now()), bad))
			h.missing(func(tx store.Tx) error { _, err := tx.GetQuery(tenant, "a"); return err })
		},
	}
}

func access() map[string]func(h *harness) {
	admin := core.Principal{Tenant: tenant, Name: "root", Role: core.RoleAdmin}
	return map[string]func(h *harness){
		"a token finds its principal": func(h *harness) {
			hash := []byte("\x00\x01hash")
			token := func(p core.Principal) func(store.Tx) error {
				return func(tx store.Tx) error { return tx.PutToken(hash, p) }
			}
			h.read(func(tx store.Tx) error {
				n, err := tx.CountTokens()
				h.same(0, n)
				return err
			})
			h.write(token(admin))
			h.write(token(admin))
			other := admin
			other.Name = "other"
			h.refused(errs.Conflict, token(other), "root", "other")
			h.read(func(tx store.Tx) error {
				got, err := tx.FindToken(hash)
				h.same(admin, got)
				n, _ := tx.CountTokens()
				h.same(1, n)
				return err
			})
			h.missing(func(tx store.Tx) error { _, err := tx.FindToken([]byte("other")); return err })
			h.missing(func(tx store.Tx) error { _, err := tx.FindToken(nil); return err })
		},
		"a new token of a principal replaces its old ones": func(h *harness) {
			other := admin
			other.Name = "other"
			h.write(func(tx store.Tx) error { return tx.PutToken([]byte("old"), admin) })
			h.write(func(tx store.Tx) error { return tx.PutToken([]byte("theirs"), other) })
			h.write(func(tx store.Tx) error { return tx.ReplaceTokens([]byte("new"), admin) })
			h.missing(func(tx store.Tx) error { _, err := tx.FindToken([]byte("old")); return err })
			for hash, want := range map[string]core.Principal{"new": admin, "theirs": other} {
				h.read(func(tx store.Tx) error {
					got, err := tx.FindToken([]byte(hash))
					h.same(want, got)
					return err
				})
			}
		},
		"a setting is kept and replaced": func(h *harness) {
			h.missing(func(tx store.Tx) error { _, err := tx.Setting("id"); return err })
			for _, v := range []string{"1", "", "two"} {
				h.write(func(tx store.Tx) error { return tx.PutSetting("id", v) })
				h.read(func(tx store.Tx) error {
					got, err := tx.Setting("id")
					h.same(v, got)
					return err
				})
			}
		},
	}
}

// audited is the i-th entry that a test writes, with the ID that the store gives it.
func audited(i int, t core.TenantID) store.AuditEntry {
	return store.AuditEntry{
		ID: int64(i), At: now().Add(time.Duration(i) * time.Hour), Tenant: t, Who: "root", Act: "apply", Object: fmt.Sprintf("Gateway/%d", i), Note: "n", Why: "w",
	}
}

func audits() map[string]func(h *harness) {
	write := func(h *harness) {
		h.Helper()
		h.write(func(tx store.Tx) error {
			for i, t := range []core.TenantID{tenant, tenant, tenant, "t2"} {
				if err := tx.Audit(audited(i+1, t)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	listed := func(h *harness, limit int, want ...store.AuditEntry) {
		h.Helper()
		h.read(func(tx store.Tx) error {
			got, err := tx.ListAudit(tenant, limit)
			h.same(want, got)
			return err
		})
	}
	return map[string]func(h *harness){
		"the audit log is listed newest first, per tenant": func(h *harness) {
			write(h)
			listed(h, 0, audited(3, tenant), audited(2, tenant), audited(1, tenant))
			listed(h, 1, audited(3, tenant))
			h.read(func(tx store.Tx) error {
				got, err := tx.GetAudit(tenant, 2)
				h.same(audited(2, tenant), got)
				return err
			})
			h.missing(func(tx store.Tx) error { _, err := tx.GetAudit("t2", 2); return err })
		},
		"of the audit log only what is old goes": func(h *harness) {
			write(h)
			h.write(func(tx store.Tx) error { return tx.PurgeAudit(audited(2, tenant).At) })
			listed(h, 0, audited(3, tenant), audited(2, tenant))
			h.write(func(tx store.Tx) error { return tx.Audit(store.AuditEntry{At: now(), Tenant: tenant}) })
			h.read(func(tx store.Tx) error {
				got, err := tx.ListAudit(tenant, 1)
				if len(got) != 1 || got[0].ID != 5 {
					h.Errorf("after a purge the next entry is %+v: an ID came back", got)
				}
				return err
			})
		},
	}
}
