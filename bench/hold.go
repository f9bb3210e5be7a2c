package main

import (
	"context"
	"encoding/json"
	"os"
)

// hold makes the table, wakes the gateway, says how to reach everything, and waits for
// the end: for profilers, and for queries by hand.
func (e *env) hold(ctx context.Context) error {
	if err := e.lineitem(ctx); err != nil {
		return err
	}
	if err := e.gateway(ctx, "wake"); err != nil {
		return err
	}
	m, err := e.member()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	e.t.Logf("processes: postgres %d, service and host %d, member %d", e.postmaster, e.sluice, m.pid)
	e.t.Logf("export SLUICE_SOCKET=%s", e.stack.Socket)
	for _, c := range []struct {
		kind string
		job  job
	}{
		{"flight", job{Address: e.stack.Flight, Token: e.stack.Token(), SQL: wholeTable}},
		{"http", job{Address: "http://" + e.stack.HTTP, Token: e.stack.Token(), SQL: wholeTable}},
		{"pgx", job{Address: e.pg.ConnString(), SQL: wholeTable}},
	} {
		doc, err := json.Marshal(c.job)
		if err != nil {
			return err
		}
		e.t.Logf("%s %s %s <<<'%s'", self, clientArg, c.kind, doc)
	}
	e.t.Logf("Ctrl-C ends it")
	<-ctx.Done()
	return nil
}
