package service

import (
	"context"
	"strings"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
)

// One principal is one session, no two are the same, and none is told to the member.
func TestSessionNamesThePrincipal(t *testing.T) {
	t.Parallel()
	seen := map[string]core.Principal{}
	for _, p := range []core.Principal{
		{Tenant: "blue", Name: "ada", Role: core.RoleAdmin}, {Tenant: "blue", Name: "bob", Role: core.RoleAdmin},
		{Tenant: "red", Name: "ada", Role: core.RoleAdmin}, {Tenant: "blue", Name: "ada", Role: "reader"},
		{Tenant: "blue\" \"ada", Name: "x"}, {Tenant: "blue", Name: "ada\" \"x"},
	} {
		ctx := core.WithPrincipal(context.Background(), p)
		id := session(ctx)
		if other, taken := seen[id]; taken {
			t.Errorf("%v and %v are one session", p, other)
		}
		seen[id] = p
		if id == "" || id != session(ctx) || strings.Contains(id, p.Name) {
			t.Errorf("the session of %v is %q", p, id)
		}
	}
	for _, p := range []core.Principal{{}, {Tenant: "blue"}} {
		if id := session(core.WithPrincipal(context.Background(), p)); id != "" {
			t.Errorf("%v, who is nobody, has the session %q", p, id)
		}
	}
}
