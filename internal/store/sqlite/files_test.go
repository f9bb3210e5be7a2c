package sqlite_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
	"github.com/sluice-gateway/sluice/internal/store/sqlite"
)

func putSetting(name, value string) func(store.Tx) error {
	return func(tx store.Tx) error { return tx.PutSetting(name, value) }
}

func setting(t *testing.T, s store.Store, name string) string {
	t.Helper()
	var v string
	err := s.Read(t.Context(), func(tx store.Tx) (err error) { v, err = tx.Setting(name); return err })
	if err != nil && errs.ClassOf(err) != errs.NotFound {
		t.Error(err)
	}
	return v
}

// raw runs statements on the file beside the store.
func raw(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func closed(t *testing.T, s *sqlite.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestReopen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s.db")
	s := open(t, path)
	if err := s.Write(t.Context(), putSetting("a", "kept")); err != nil {
		t.Fatal(err)
	}
	closed(t, s)
	s = open(t, path)
	defer closed(t, s)
	if got := setting(t, s, "a"); got != "kept" {
		t.Errorf("after reopening: %q", got)
	}
}

// A second process that opens the file meets what the first committed, though the
// first never closed: what a crash leaves is the same.
func TestCommittedWithoutClose(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s.db")
	s := open(t, path)
	defer closed(t, s)
	if err := s.Write(t.Context(), putSetting("a", "kept")); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy.db") // as a crash would leave the files
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(copied+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	after := open(t, copied)
	defer closed(t, after)
	if got := setting(t, after, "a"); got != "kept" {
		t.Errorf("after a crash: %q", got)
	}
}

func TestSchemaHoldsWithoutTheCode(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s.db")
	closed(t, open(t, path))
	db, err := sql.Open("sqlite", path+"?_pragma=foreign_keys(1)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	lease := "INSERT INTO leases (tenant,vnet_uid,address,vnet,subnet,member,generation,state,acquired_at,reusable_at) VALUES ('t','v','10.0.0.4','v','s','%s',1,'%s',1,%d)"
	audit := "INSERT INTO audit (at,tenant,who,act,object,note) VALUES (%d,'t','','','','')"
	member := "INSERT INTO members (id,tenant,generation,gateway,gateway_uid,vnet,vnet_uid,subnet,host,address,tunnel_address,state,reason,cpus,memory_mib,created_at,ready_at,gone_at) " +
		"VALUES ('%s','t',1,'','','','','','h','','169.254.0.1','%s','',1,1,1,0,%d)"
	resource := "INSERT INTO resources VALUES ('%s','t','Gateway','%s',1,1,1,'{}')"
	for _, c := range []struct {
		statement string
		ok        bool
	}{
		{fmt.Sprintf(lease, "a", "held", 0), true},
		{fmt.Sprintf(lease, "b", "held", 0), false},
		{fmt.Sprintf(lease, "b", "quarantined", 5), false},
		{"UPDATE leases SET state = 'lost'", false},
		{"UPDATE leases SET reusable_at = 5", false},
		{"UPDATE leases SET member = 'b'", false},
		{"UPDATE leases SET generation = 2", false},
		{"UPDATE leases SET address = '10.0.0.5'", false},
		{"DELETE FROM leases", false}, // it is held
		{"UPDATE leases SET expires_at = 7", true},
		{"UPDATE leases SET state = 'quarantined', reusable_at = 5", true},
		{"UPDATE leases SET state = 'held', reusable_at = 0", false},
		{"DELETE FROM leases", true},
		{fmt.Sprintf(audit, 5), true},
		{fmt.Sprintf(audit, 9), true},
		{"UPDATE audit SET who = 'nobody'", false},
		{"DELETE FROM audit", false},
		{"INSERT INTO settings VALUES ('audit.kept-since', '7')", true},
		{"DELETE FROM audit", false},
		{"DELETE FROM audit WHERE at < 7", true},
		{fmt.Sprintf(member, "a", "leaving", 0), true},
		{fmt.Sprintf(member, "b", "placed", 0), false},
		{fmt.Sprintf(member, "b", "gone", 0), false},
		{fmt.Sprintf(member, "b", "gone", 7), true},
		{"UPDATE members SET generation = 'x'", false},
		{fmt.Sprintf(resource, "u1", "g"), true},
		{fmt.Sprintf(resource, "u2", "g"), false},
		{fmt.Sprintf(resource, "u1", "g2"), false},
		{"INSERT INTO secrets VALUES ('t','u1','p',x'00')", true},
		{"INSERT INTO secrets VALUES ('t','u9','p',x'00')", false},
		{"INSERT INTO secrets VALUES ('t2','u1','p',x'00')", false},
	} {
		if _, err := db.Exec(c.statement); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.statement, err)
		}
	}
}

// TestFirstSchemaIsBroughtUpToDate: what a first version wrote stands, each lease with the
// host and the gateway of its member.
func TestFirstSchemaIsBroughtUpToDate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s.db")
	first, err := os.ReadFile("migrations/0001_initial.sql")
	if err != nil {
		t.Fatal(err)
	}
	raw(t, path, string(first), "PRAGMA user_version = 1; PRAGMA application_id = 0x534c4345",
		"INSERT INTO leases VALUES ('t','v','10.0.0.4','corp','s','a',1,'held',5,0)",
		"INSERT INTO members (id,tenant,generation,gateway,gateway_uid,vnet,vnet_uid,subnet,host,address,tunnel_address,state,reason,cpus,memory_mib,created_at,ready_at,gone_at) "+
			"VALUES ('a','t',1,'bi','','corp','v','s','h','10.0.0.4','169.254.0.1','ready','',1,1,1,0,0)",
		"INSERT INTO audit (at,tenant,who,act,object,note) VALUES (5,'t','ann','apply','Gateway/bi','created')")
	s := open(t, path)
	defer closed(t, s)
	err = s.Read(t.Context(), func(tx store.Tx) error {
		leases, err := tx.ListLeases("t")
		if err != nil || len(leases) != 1 || leases[0].Host != "h" || leases[0].Gateway != "bi" || leases[0].ExpiresAt.UnixNano() != 5 {
			t.Errorf("leases %+v, %v", leases, err)
		}
		entries, err := tx.ListAudit("t", 0)
		if err != nil || len(entries) != 1 || entries[0].Who != "ann" || entries[0].Why != "" {
			t.Errorf("audit %+v, %v", entries, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestFileMode(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s.db")
	s := open(t, path)
	if err := s.Write(t.Context(), putSetting("a", "b")); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if got := mode(t, path+suffix); got != 0o600 {
			t.Errorf("%s%s has mode %o", path, suffix, got)
		}
	}
	closed(t, s)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	closed(t, open(t, path))
	if got := mode(t, path); got != 0o600 {
		t.Errorf("opened with mode 0644, it has %o", got)
	}
}

func mode(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

// Each file is refused with the class and words, and not changed.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(t *testing.T, path string)
		class   errs.Class
		words   string
	}{
		"a newer schema": {
			func(t *testing.T, path string) {
				closed(t, open(t, path))
				raw(t, path, "PRAGMA user_version = 99")
			}, errs.Invalid, "schema version 99, this program knows up to 6",
		},
		"another program's database": {
			func(t *testing.T, path string) { raw(t, path, "CREATE TABLE mine (a)") },
			errs.Invalid, "is a database of another program",
		},
		"another program's marked database": {
			func(t *testing.T, path string) { raw(t, path, "PRAGMA application_id = 7") },
			errs.Invalid, "is a database of another program",
		},
		"text": {
			func(t *testing.T, path string) { writeFile(t, path, []byte("kind: Gateway\n")) },
			errs.Invalid, "is not a database of Sluice",
		},
		"much text": {
			func(t *testing.T, path string) { writeFile(t, path, bytes.Repeat([]byte("x"), 8192)) },
			errs.Invalid, "is not a database of Sluice",
		},
		"a damaged header": {
			func(t *testing.T, path string) {
				closed(t, open(t, path))
				damage(t, path, 16, 84)
			}, errs.Internal, "is damaged",
		},
		"damaged pages": {
			func(t *testing.T, path string) {
				closed(t, open(t, path))
				damage(t, path, 4096, 40000)
			}, errs.Internal, "is damaged",
		},
		"a file cut off": {
			func(t *testing.T, path string) {
				closed(t, open(t, path))
				if err := os.Truncate(path, 8192); err != nil {
					t.Fatal(err)
				}
			}, errs.Internal, "is damaged",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "s.db")
			c.prepare(t, path)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			s, err := sqlite.Open(t.Context(), sqlite.Options{Path: path})
			if err == nil {
				closed(t, s)
				t.Fatal("opened")
			}
			if errs.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.words) || !strings.Contains(err.Error(), path) || errs.As(err).Hint == "" {
				t.Errorf("%s: %v (hint %q)", errs.ClassOf(err), err, errs.As(err).Hint)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("the file was changed")
			}
		})
	}
	for name, path := range map[string]string{"no path": "", "no folder": filepath.Join(t.TempDir(), "x", "s.db"), "a folder": t.TempDir()} {
		if _, err := sqlite.Open(t.Context(), sqlite.Options{Path: path}); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

func writeFile(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// damage overwrites a part of a file.
func damage(t *testing.T, path string, from, n int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{0x5a}, int(n)), from); err != nil {
		t.Fatal(err)
	}
}

// tmpfs mounts a small file system for one test.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("sluice-test", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// fill leaves no room on a file system; removing the file that it returns gives it back.
func fill(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 4096); ; {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			return path
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t, "4m")
	path := filepath.Join(dir, "s.db")
	s := open(t, path)
	defer func() { closed(t, s) }()
	if err := s.Write(t.Context(), putSetting("before", "kept")); err != nil {
		t.Fatal(err)
	}
	filler := fill(t, dir)

	big := strings.Repeat("x", 256<<10)
	swallowed := false
	for name, fn := range map[string]func(tx store.Tx) error{
		"large": putSetting("large", big),
		"swallowed": func(tx store.Tx) error { // whoever passes over the error must not commit half of it
			_ = tx.PutSetting("half", "1")
			for i := range 64 { // more than SQLite's cache holds: some of it must be written
				if tx.PutSetting(fmt.Sprintf("large %d", i), big) != nil {
					swallowed = true
				}
			}
			_ = tx.PutSetting("other half", "1")
			return nil
		},
	} {
		err := s.Write(t.Context(), fn)
		if errs.ClassOf(err) != errs.StorageFull {
			t.Fatalf("%s: %v (%s)", name, err, errs.ClassOf(err))
		}
		if e := errs.As(err); !strings.Contains(e.Message, path) || !strings.Contains(e.Hint, "free space") {
			t.Errorf("%s: %q, hint %q", name, e.Message, e.Hint)
		}
	}
	if !swallowed {
		t.Error("no error came before the commit: the test does not test what it says")
	}
	for name, want := range map[string]string{"before": "kept", "large": "", "half": "", "other half": ""} {
		if got := setting(t, s, name); got != want {
			t.Errorf("while full: %s is %.10q", name, got)
		}
	}
	if _, err := sqlite.Open(t.Context(), sqlite.Options{Path: filepath.Join(dir, "new.db")}); errs.ClassOf(err) != errs.StorageFull {
		t.Errorf("a new database on a full disk: %v", err)
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), putSetting("after", "works")); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	closed(t, s)
	s = open(t, path)
	for name, want := range map[string]string{"before": "kept", "after": "works", "half": ""} {
		if got := setting(t, s, name); got != want {
			t.Errorf("reopened: %s is %q", name, got)
		}
	}
}

func queryBatch(n int) []core.Query {
	var out []core.Query
	for i := range n {
		out = append(out, core.Query{
			ID: fmt.Sprintf("q-%d", i), Tenant: "t", User: "u", Source: "orders", SQL: "select * from orders where id = $1",
			Class: core.ClassInteractive, State: core.QuerySucceeded, StartedAt: time.Unix(int64(i), 0),
			Phases: []core.Phase{{Name: core.PhaseQueued, Duration: 1}, {Name: core.PhaseStreamed, Duration: 2}},
		})
	}
	return out
}

func BenchmarkPut100Queries(b *testing.B) {
	s, err := sqlite.Open(context.Background(), sqlite.Options{Path: filepath.Join(b.TempDir(), "s.db")})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	batch := queryBatch(100)
	for b.Loop() {
		if err := s.Write(context.Background(), func(tx store.Tx) error { return tx.PutQueries(batch) }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPutSetting(b *testing.B) {
	s, err := sqlite.Open(context.Background(), sqlite.Options{Path: filepath.Join(b.TempDir(), "s.db")})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for b.Loop() {
		if err := s.Write(context.Background(), putSetting("a", "b")); err != nil {
			b.Fatal(err)
		}
	}
}
