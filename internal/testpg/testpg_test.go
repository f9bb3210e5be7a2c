package testpg

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

func connect(t *testing.T, conn string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := pgconn.Connect(ctx, conn)
	if err != nil {
		return err
	}
	return c.Close(ctx)
}

func TestStartStopRestart(t *testing.T) {
	t.Parallel()
	s := Start(t, WithTLS("127.0.0.1", "db.example"), WithUser("extra", "x'y"), WithSetting("work_mem", "7MB"))
	s.Exec(t, "create table t as select 1 as a; insert into t values (null)")
	if got := s.Rows(t, "select a from t order by a"); len(got) != 2 || got[0][0] != "1" || got[1][0] != Null {
		t.Fatalf("rows: %v", got)
	}
	if got := s.Value(t, "show work_mem"); got != "7MB" {
		t.Fatalf("work_mem: %s", got)
	}
	if err := connect(t, s.ConnString()); err != nil {
		t.Fatal(err)
	}
	if err := connect(t, strings.Replace(s.ConnString(), s.Password, "wrong", 1)); err == nil {
		t.Fatal("a wrong password was accepted")
	}
	s.Stop(t)
	if err := connect(t, s.ConnString()); err == nil {
		t.Fatal("a stopped server accepted a connection")
	}
	s.Restart(t)
	if got := s.Value(t, "select count(*) from t"); got != "2" {
		t.Fatalf("count after the restart: %s", got)
	}
}

func TestRemoved(t *testing.T) {
	t.Parallel()
	var dir string
	t.Run("server", func(t *testing.T) { dir = Start(t).inst.dir })
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Fatalf("%s is left behind: %v", dir, err)
	}
}

// The watching shell must clean up when the test binary dies without its cleanups.
func TestWatchCleansUp(t *testing.T) {
	t.Parallel()
	inst, err := newInstance(nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = inst.watch.Close()
	select {
	case <-inst.done:
	case <-time.After(20 * time.Second):
		t.Fatal("postgres outlived the test binary")
	}
	for range 100 {
		if _, err := os.Stat(inst.dir); os.IsNotExist(err) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s is left behind", inst.dir)
}

func TestShared(t *testing.T) {
	var names []string
	for range 2 {
		t.Run("db", func(t *testing.T) {
			s := Shared(t)
			names = append(names, s.Database)
			s.Exec(t, "create table same_name (a int)")
			if err := connect(t, s.ConnString()); err != nil {
				t.Fatal(err)
			}
		})
	}
	s := Shared(t)
	left := s.Value(t, "select count(*) from pg_database where datname in ('"+strings.Join(names, "','")+"')")
	if left != "0" {
		t.Fatalf("%s databases left behind", left)
	}
}
