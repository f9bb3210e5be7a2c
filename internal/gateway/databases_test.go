package gateway

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

func cache(t *testing.T, fake *fakeSource, maxIdle int, idle time.Duration) *databases {
	d := newDatabases(ServerOptions{
		Lookup:       func(string) (connector.Connector, bool) { return fake, true },
		MaxDatabases: maxIdle, IdleClose: idle,
	})
	t.Cleanup(func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
		if o, c := fake.opened.Load(), fake.closed.Load(); o != c {
			t.Errorf("%d opened, %d closed", o, c)
		}
	})
	return d
}

func acquire(t *testing.T, d *databases, src memberapi.Source) *database {
	t.Helper()
	db, err := d.acquire(src)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// A database serves one source identity: whoever has another password, or may write,
// gets another.
func TestDatabasesAreKeyedByIdentity(t *testing.T) {
	t.Parallel()
	d := cache(t, &fakeSource{}, 64, time.Hour)
	base := memberapi.Source{Name: "a", Type: "fake", Username: "u", Password: "p", Parameters: map[string]string{"host": "h", "port": "1"}}
	first := acquire(t, d, base)
	defer d.release(first)
	for name, change := range map[string]func(*memberapi.Source){
		"nothing":    func(s *memberapi.Source) { s.Parameters = map[string]string{"port": "1", "host": "h"} },
		"password":   func(s *memberapi.Source) { s.Password = "q" },
		"user":       func(s *memberapi.Source) { s.Username = "v" },
		"kind":       func(s *memberapi.Source) { s.Credential = "basic" },
		"parameter":  func(s *memberapi.Source) { s.Parameters = map[string]string{"host": "h", "port": "2"} },
		"read only":  func(s *memberapi.Source) { s.ReadOnly = true },
		"type":       func(s *memberapi.Source) { s.Type = "fake2" },
		"name":       func(s *memberapi.Source) { s.Name = "b" },
		"boundaries": func(s *memberapi.Source) { s.Username, s.Password = "up", "" },
	} {
		src := base
		change(&src)
		db := acquire(t, d, src)
		if same := db == first; same != (name == "nothing") {
			t.Errorf("%s changed: the same database is %t", name, same)
		}
		d.release(db)
	}
	if s := fmt.Sprintf("%#v %v", d.open, first.key); strings.Contains(s, base.Password+`"`) {
		t.Errorf("the cache shows a password: %s", s)
	}
}

func TestDatabasesCloseTheLongestIdle(t *testing.T) {
	t.Parallel()
	fake := &fakeSource{}
	d := cache(t, fake, 2, time.Hour)
	named := func(name string) memberapi.Source { return memberapi.Source{Name: name} }
	used := acquire(t, d, named("used"))
	for _, name := range []string{"a", "b", "a", "c"} { // b is the oldest then
		d.release(acquire(t, d, named(name)))
	}
	if n := fake.closed.Load(); n != 1 {
		t.Fatalf("%d closed, want 1", n)
	}
	opened := fake.opened.Load()
	for _, name := range []string{"a", "c", "used"} {
		d.release(acquire(t, d, named(name)))
	}
	if n := fake.opened.Load(); n != opened {
		t.Errorf("%d opened anew: the wrong one was closed", n-opened)
	}
	d.release(used)
}

func TestDatabasesCloseWhenIdle(t *testing.T) {
	t.Parallel()
	fake := &fakeSource{}
	d := cache(t, fake, 64, 50*time.Millisecond)
	used := acquire(t, d, memberapi.Source{Name: "used"})
	for _, name := range []string{"a", "b"} {
		d.release(acquire(t, d, memberapi.Source{Name: name}))
	}
	waitFor(t, 30*time.Second, func() bool { return fake.closed.Load() == 2 })
	time.Sleep(100 * time.Millisecond)
	if n := fake.closed.Load(); n != 2 {
		t.Errorf("%d closed: one was in use", n)
	}
	d.release(used)
	waitFor(t, 30*time.Second, func() bool { return fake.closed.Load() == 3 })
}

func TestDatabasesAfterClose(t *testing.T) {
	t.Parallel()
	fake := &fakeSource{}
	d := cache(t, fake, 64, time.Hour)
	used := acquire(t, d, memberapi.Source{Name: "used"})
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.acquire(memberapi.Source{Name: "used"}); errs.ClassOf(err) != errs.Unavailable {
		t.Errorf("acquire after close: %v", err)
	}
	if fake.closed.Load() != 0 {
		t.Error("a database was closed under its user")
	}
	d.release(used)
	if fake.closed.Load() != 1 {
		t.Error("the last user's release did not close it")
	}
}
