// Package storetest is the suite that every implementation of store.Store must pass.
//
// It owns the rules of the contract in executable form, one test each; what is
// special to an implementation (files, migrations, full disks) it leaves to that
// implementation's own tests, which are the only callers.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

// Run runs the suite. open gives an empty store; the suite closes it.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, group := range []map[string]func(h *harness){
		transactions(), endings(), resources(), resourcesApart(), secrets(), members(), tunnelAddresses(),
		joinHashes(), joinRefusals(), leases(), renewals(), quarantines(), hosts(), queries(), queryEnds(), histories(), access(), audits(),
	} {
		for name, test := range group {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := open(t)
				t.Cleanup(func() {
					if err := s.Close(); err != nil {
						t.Errorf("close: %v", err)
					}
				})
				test(&harness{T: t, store: s})
			})
		}
	}
}

// tenant is the tenant of whatever a test does not say otherwise about.
const tenant core.TenantID = "t1"

// now is a fixed time with nanoseconds: a store must keep them.
func now() time.Time { return time.Date(2026, 11, 23, 10, 30, 0, 123456789, time.UTC) }

// harness is a store with helpers that fail the test.
type harness struct {
	*testing.T
	store store.Store
}

func (h *harness) ctx() context.Context { return h.Context() }

// write runs fn in a Write that must succeed.
func (h *harness) write(fn func(tx store.Tx) error) {
	h.Helper()
	if err := h.store.Write(h.ctx(), fn); err != nil {
		h.Fatalf("write: %v", err)
	}
}

// read runs fn in a Read that must succeed.
func (h *harness) read(fn func(tx store.Tx) error) {
	h.Helper()
	if err := h.store.Read(h.ctx(), fn); err != nil {
		h.Fatalf("read: %v", err)
	}
}

// refused runs fn in a Write that must fail with the class, and name each word.
func (h *harness) refused(class errs.Class, fn func(tx store.Tx) error, words ...string) {
	h.Helper()
	h.fails(h.store.Write(h.ctx(), fn), class, words...)
}

// missing runs fn in a Read that must fail as not found.
func (h *harness) missing(fn func(tx store.Tx) error) {
	h.Helper()
	h.fails(h.store.Read(h.ctx(), fn), errs.NotFound)
}

func (h *harness) fails(err error, class errs.Class, words ...string) {
	h.Helper()
	if err == nil {
		h.Errorf("accepted, want an error of class %s", class)
		return
	}
	var e *errs.Error
	if !errors.As(err, &e) {
		h.Errorf("%v is a %T, want *errs.Error", err, err)
		return
	}
	if e.Class != class {
		h.Errorf("%v: class %s, want %s", err, e.Class, class)
	}
	for _, w := range words {
		if !strings.Contains(e.Message, w) {
			h.Errorf("%q does not name %q", e.Message, w)
		}
	}
}

// same compares what was stored with what came back.
func (h *harness) same(want, got any) {
	h.Helper()
	opts := cmp.Options{
		cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, core.Secret{}),
		cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) }),
	}
	if diff := cmp.Diff(want, got, opts); diff != "" {
		h.Errorf("-want +got:\n%s", diff)
	}
}

func gateway(name string) core.Stored {
	return core.Stored{
		Tenant: tenant, UID: "uid-" + name, Version: 1, CreatedAt: now(), UpdatedAt: now(),
		Spec: &core.Gateway{Name: name, VNet: "v", Subnet: "s", AutoPause: core.Never},
	}
}

func put(r core.Stored) func(store.Tx) error {
	return func(tx store.Tx) error { return tx.PutResource(r) }
}

func transactions() map[string]func(h *harness) {
	return map[string]func(h *harness){
		"a Write whose function fails leaves nothing": func(h *harness) {
			stop := errors.New("stop")
			err := h.store.Write(h.ctx(), func(tx store.Tx) error {
				if err := tx.PutResource(gateway("g")); err != nil {
					return err
				}
				if err := tx.PutSetting("a", "b"); err != nil {
					return err
				}
				return stop
			})
			if !errors.Is(err, stop) {
				h.Errorf("the function's error became %v", err)
			}
			h.missing(func(tx store.Tx) error { _, err := tx.GetResource(tenant, core.KindGateway, "g"); return err })
			h.missing(func(tx store.Tx) error { _, err := tx.Setting("a"); return err })
		},
		"a Write that panics leaves nothing and holds nothing": func(h *harness) {
			func() {
				defer func() { _ = recover() }()
				_ = h.store.Write(h.ctx(), func(tx store.Tx) error {
					_ = tx.PutSetting("a", "b")
					panic("defect")
				})
			}()
			h.missing(func(tx store.Tx) error { _, err := tx.Setting("a"); return err })
			h.write(func(tx store.Tx) error { return tx.PutSetting("a", "c") })
		},
		"a Write sees its own changes, a Read beside it does not": func(h *harness) {
			h.write(func(tx store.Tx) error {
				if err := tx.PutSetting("a", "1"); err != nil {
					return err
				}
				v, err := tx.Setting("a")
				if v != "1" {
					h.Errorf("own change: %q, %v", v, err)
				}
				h.missing(func(tx store.Tx) error { _, err := tx.Setting("a"); return err })
				return nil
			})
		},
		"a Read stays on its snapshot": func(h *harness) {
			h.write(func(tx store.Tx) error { return tx.PutSetting("a", "1") })
			h.read(func(tx store.Tx) error {
				before, err := tx.Setting("a")
				if err != nil {
					return err
				}
				h.write(func(tx store.Tx) error { return tx.PutSetting("a", "2") })
				after, err := tx.Setting("a")
				if before != "1" || after != "1" {
					h.Errorf("%q, then %q", before, after)
				}
				return err
			})
		},
		"a Read can't write": func(h *harness) {
			for name, fn := range map[string]func(tx store.Tx) error{
				"setting": func(tx store.Tx) error { return tx.PutSetting("a", "1") },
				"queries": func(tx store.Tx) error { return tx.PutQueries([]core.Query{query("q", now())}) },
				"goal":    func(tx store.Tx) error { _, err := tx.NextGoalVersion("h"); return err },
				"join":    func(tx store.Tx) error { _, err := tx.UseJoinHash("m", "h"); return err },
			} {
				if err := h.store.Read(h.ctx(), fn); err == nil {
					h.Errorf("%s: written", name)
				}
			}
		},
	}
}

func endings() map[string]func(h *harness) {
	return map[string]func(h *harness){
		"a transaction is of no use after its end": func(h *harness) {
			var kept store.Tx
			h.write(func(tx store.Tx) error { kept = tx; return nil })
			if err := kept.PutSetting("a", "1"); err == nil {
				h.Error("a finished Write wrote")
			}
			h.read(func(tx store.Tx) error { kept = tx; return nil })
			if _, err := kept.ListHosts(); err == nil {
				h.Error("a finished Read read")
			}
		},
		"a context that is done ends a transaction": func(h *harness) {
			ctx, cancel := context.WithCancel(h.ctx())
			err := h.store.Write(ctx, func(tx store.Tx) error {
				if err := tx.PutSetting("a", "1"); err != nil {
					return err
				}
				cancel()
				return nil
			})
			h.fails(err, errs.Cancelled)
			h.missing(func(tx store.Tx) error { _, err := tx.Setting("a"); return err })
			h.fails(h.store.Read(ctx, func(store.Tx) error { return nil }), errs.Cancelled)
		},
		"a Write waits no longer than its context for another": func(h *harness) {
			h.write(func(store.Tx) error {
				ctx, cancel := context.WithTimeout(h.ctx(), 50*time.Millisecond)
				defer cancel()
				h.fails(h.store.Write(ctx, func(store.Tx) error { return nil }), errs.Timeout)
				return nil
			})
		},
		"Writes run one at a time": func(h *harness) {
			const writers, each = 8, 10
			done := make(chan error, writers)
			for range writers {
				go func() {
					var err error
					for i := 0; i < each && err == nil; i++ {
						err = h.store.Write(h.ctx(), increment)
					}
					done <- err
				}()
			}
			for range writers {
				if err := <-done; err != nil {
					h.Error(err)
				}
			}
			h.read(func(tx store.Tx) error {
				v, err := tx.Setting("n")
				if v != fmt.Sprint(writers*each) {
					h.Errorf("counted %s, want %d", v, writers*each)
				}
				return err
			})
		},
	}
}

// increment reads a number and stores the next: two at once would lose one.
func increment(tx store.Tx) error {
	v, err := tx.Setting("n")
	if err != nil && errs.ClassOf(err) != errs.NotFound {
		return err
	}
	n := 0
	_, _ = fmt.Sscan(v, &n)
	return tx.PutSetting("n", fmt.Sprint(n+1))
}
