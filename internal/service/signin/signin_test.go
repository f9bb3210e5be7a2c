package signin

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

var admin = core.Principal{Tenant: core.DefaultTenant, Name: "admin", Role: core.RoleAdmin}

// clock is a time that tests move.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

// setup returns a gate for which "good" is the only token, and counts look-ups.
func setup() (*Gate, *clock, *int) {
	c, lookups := &clock{time.Unix(1e9, 0)}, 0
	g := New(Options{Burst: 3, Refill: time.Second, Now: c.Now, Authenticate: func(_ context.Context, token string) (core.Principal, error) {
		lookups++
		switch token {
		case "good":
			return admin, nil
		case "down":
			return core.Principal{}, errs.New(errs.Unavailable, "the store is down")
		}
		return core.Principal{}, errs.New(errs.Unauthenticated, "the token %q is not known", token)
	}})
	return g, c, &lookups
}

func TestEveryBadTokenGetsTheSameAnswer(t *testing.T) {
	g, _, _ := setup()
	var first *errs.Error
	for _, token := range []string{"", "bad", "goo"} {
		_, err := g.Check(context.Background(), "192.0.2.1:1", token)
		e := errs.As(err)
		if e.Class != errs.Unauthenticated {
			t.Fatalf("%q: %v", token, err)
		}
		if first == nil {
			first = e
		}
		if e.Message != first.Message || e.Hint != first.Hint {
			t.Errorf("%q is answered differently: %v", token, e)
		}
	}
	p, err := g.Check(context.Background(), "192.0.2.2:1", "good")
	if diff := cmp.Diff(admin, p); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
}

func TestFailuresAreBounded(t *testing.T) {
	g, c, lookups := setup()
	ctx := context.Background()
	if _, err := g.Check(ctx, "192.0.2.1:1", "good"); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		_, _ = g.Check(ctx, "192.0.2.1:1234", "bad")
	}
	if *lookups > 4 {
		t.Errorf("%d look-ups for 100 bad tokens", *lookups)
	}
	if _, err := g.Check(ctx, "192.0.2.1:1", "bad"); errs.ClassOf(err) != errs.Exhausted {
		t.Errorf("past the bound: %v", err)
	}
	if _, err := g.Check(ctx, "192.0.2.1:1", "good"); err != nil {
		t.Errorf("a good token from the same address: %v", err)
	}
	if _, err := g.Check(ctx, "192.0.2.9:1", "bad"); errs.ClassOf(err) != errs.Unauthenticated {
		t.Errorf("another address: %v", err)
	}
	c.now = c.now.Add(2 * time.Second)
	if _, err := g.Check(ctx, "192.0.2.1:1", "bad"); errs.ClassOf(err) != errs.Unauthenticated {
		t.Errorf("after a while: %v", err)
	}
}

func TestOtherErrorsPass(t *testing.T) {
	g, _, _ := setup()
	for range 10 {
		if _, err := g.Check(context.Background(), "192.0.2.1:1", "down"); errs.ClassOf(err) != errs.Unavailable {
			t.Fatal(err)
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	g, c, _ := setup()
	for i := range 3 * maxAddresses {
		_, _ = g.Check(context.Background(), fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255), "bad")
		_, _ = g.Check(context.Background(), fmt.Sprintf("[2001:db8:%x:%x::1]:1", i>>8, i&255), "bad")
	}
	if len(g.failures) > maxAddresses+1 {
		t.Errorf("%d addresses are remembered", len(g.failures))
	}
	if _, err := g.Check(context.Background(), "172.16.0.2:1", "bad"); errs.ClassOf(err) != errs.Exhausted {
		t.Errorf("an address without room is not bounded: %v", err)
	}
	c.now = c.now.Add(time.Hour)
	_, _ = g.Check(context.Background(), "172.16.0.1:1", "bad")
	if len(g.failures) > 2 {
		t.Errorf("%d addresses after an hour", len(g.failures))
	}
}

func TestNetwork(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.1:80":              "192.0.2.1",
		"[::ffff:192.0.2.1]:80":     "192.0.2.1",
		"[2001:db8::1:2:3:4%x]:443": "2001:db8::",
		"@":                         "invalid IP",
	} {
		if got := network(remote).String(); got != want {
			t.Errorf("%s: %s, want %s", remote, got, want)
		}
	}
}
