package testpg

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
)

// Null is what Rows gives for a null.
const Null = "\\N"

// Exec runs SQL, one statement or several, in the database as the superuser.
func (s *Server) Exec(t TB, sql string) {
	t.Helper()
	s.Rows(t, sql)
}

// Rows runs SQL as Exec does and returns the last statement's rows as text.
func (s *Server) Rows(t TB, sql string) [][]string {
	t.Helper()
	rows, err := s.inst.exec(s.Database, sql)
	if err != nil {
		t.Fatalf("testpg: %v\nin: %.500s", err, sql)
	}
	return rows
}

// Value runs SQL as Exec does and returns the last statement's only value.
func (s *Server) Value(t TB, sql string) string {
	t.Helper()
	rows := s.Rows(t, sql)
	if len(rows) != 1 || len(rows[0]) != 1 {
		t.Fatalf("testpg: want one value, got %v from: %.500s", rows, sql)
	}
	return rows[0][0]
}

// exec uses the server's Unix socket, on which the superuser needs no password.
func (i *instance) exec(db, sql string) ([][]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*startTimeout)
	defer cancel()
	conn, err := pgconn.Connect(ctx, fmt.Sprintf("host=%s port=%d user=postgres dbname=%s", i.dir, i.port, db))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }()
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil || len(results) == 0 {
		return nil, err
	}
	return texts(results[len(results)-1].Rows), nil
}

func texts(rows [][][]byte) [][]string {
	out := make([][]string, len(rows))
	for r, row := range rows {
		for _, v := range row {
			if v == nil {
				out[r] = append(out[r], Null)
			} else {
				out[r] = append(out[r], string(v))
			}
		}
	}
	return out
}

func (i *instance) createUsers() error {
	for name, password := range i.users {
		sql := fmt.Sprintf("create role %s login password '%s'", quote(name), strings.ReplaceAll(password, "'", "''"))
		if _, err := i.exec("postgres", sql); err != nil {
			return err
		}
	}
	return nil
}

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

func (s *Server) createDatabase(t TB) {
	t.Helper()
	sql := fmt.Sprintf("create database %s owner %s", quote(s.Database), quote(s.User))
	if _, err := s.inst.exec("postgres", sql); err != nil {
		t.Fatalf("testpg: %v", err)
	}
}

// sharedInstance is the test binary's one server. It is made at the first use and
// goes away with the binary: see startWatch.
var sharedInstance = struct {
	sync.Mutex
	inst *instance
	err  error
	next int
}{}

// Shared returns a new database in the test binary's shared server, and drops it at
// the end of the test.
func Shared(t TB) *Server {
	t.Helper()
	sh := &sharedInstance
	sh.Lock()
	if sh.inst == nil && sh.err == nil {
		if sh.inst, sh.err = newInstance(nil); sh.err == nil {
			sh.inst.shared = true
		}
	}
	sh.next++
	inst, err, name := sh.inst, sh.err, fmt.Sprintf("test%d", sh.next)
	sh.Unlock()
	if err != nil {
		t.Fatalf("testpg: %v", err)
	}
	s := inst.server(name)
	s.createDatabase(t)
	t.Cleanup(func() {
		if _, err := inst.exec("postgres", "drop database "+quote(name)+" with (force)"); err != nil {
			t.Errorf("testpg: %v", err)
		}
	})
	return s
}
