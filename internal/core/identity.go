package core

import (
	"context"
	"errors"
)

// TenantID names the tenant that owns a row, a resource or a request.
type TenantID string

// DefaultTenant is the tenant of a single-tenant installation.
const DefaultTenant TenantID = "default"

// Role says what a principal may do.
type Role string

// RoleAdmin may do everything inside its tenant.
const RoleAdmin Role = "admin"

// Principal is whoever makes a request: it is authenticated once, at the front
// end, and carried through the request's context from there on.
type Principal struct {
	Tenant TenantID `json:"tenant"`
	Name   string   `json:"name"` // shown in the query log and audit entries
	Role   Role     `json:"role"`
}

type principalKey struct{}

// ErrNoPrincipal says that a request reached the service unauthenticated.
var ErrNoPrincipal = errors.New("the request carries no principal")

// WithPrincipal returns a context that carries p.
func WithPrincipal(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// PrincipalFrom returns the principal that the context carries, or ErrNoPrincipal.
func PrincipalFrom(ctx context.Context) (Principal, error) {
	p, ok := ctx.Value(principalKey{}).(Principal)
	if !ok || p.Tenant == "" {
		return Principal{}, ErrNoPrincipal
	}
	return p, nil
}
