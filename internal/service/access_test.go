package service

import (
	"context"
	"reflect"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// TestEveryOperationAsksForTheRole walks all that front ends can ask of the service, without a
// principal and with one whose role may do nothing.
func TestEveryOperationAsksForTheRole(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	open := map[string]bool{"Authenticate": true, "Ready": true} // they come before there is a principal
	reader := core.WithPrincipal(context.Background(), core.Principal{Tenant: core.DefaultTenant, Name: "bob", Role: "reader"})
	all := reflect.TypeFor[Frontend]()
	for i := range all.NumMethod() {
		m := all.Method(i)
		if open[m.Name] {
			continue
		}
		for who, c := range map[string]struct {
			ctx  context.Context
			want errs.Class
		}{"nobody": {context.Background(), errs.Unauthenticated}, "a reader": {reader, errs.Denied}} {
			args := []reflect.Value{reflect.ValueOf(c.ctx)}
			for j := 1; j < m.Type.NumIn(); j++ {
				args = append(args, reflect.New(m.Type.In(j)).Elem())
			}
			out := reflect.ValueOf(r.svc).MethodByName(m.Name).Call(args)
			if err, _ := out[len(out)-1].Interface().(error); errs.ClassOf(err) != c.want {
				t.Errorf("%s by %s: %v; want it %s", m.Name, who, err, c.want)
			}
		}
	}
	if all.NumMethod() < 15 {
		t.Errorf("%d operations were tried", all.NumMethod())
	}
}
