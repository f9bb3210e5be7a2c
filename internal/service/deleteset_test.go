package service

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// refs lists "Kind/name"s.
func refs(names ...string) (out []ObjectRef) {
	for _, n := range names {
		kind, name, _ := strings.Cut(n, "/")
		out = append(out, ObjectRef{core.Kind(kind), name})
	}
	return out
}

func (r *rig) names() map[string]bool {
	r.t.Helper()
	out := map[string]bool{}
	for _, k := range core.Kinds() {
		views, err := r.svc.List(r.ctx, string(k))
		if err != nil {
			r.t.Fatal(err)
		}
		for _, v := range views {
			out[v.Kind+"/"+v.Name] = true
		}
	}
	return out
}

// TestDeleteWhatRefersToEachOther: a network and its NAT gateway hold each other, and go
// together.
func TestDeleteWhatRefersToEachOther(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	before := len(r.names())
	for _, alone := range refs("VirtualNetwork/corp", "NATGateway/egress") {
		if err := r.svc.Delete(r.ctx, string(alone.Kind), alone.Name, DeleteOptions{}); errs.ClassOf(err) != errs.Conflict {
			t.Errorf("%s alone: %v, want a conflict", alone, err)
		}
	}
	some := DeleteSet{Objects: refs("VirtualNetwork/corp", "NATGateway/egress")}
	if _, err := r.svc.DeleteAll(r.ctx, some); errs.ClassOf(err) != errs.Conflict || !strings.Contains(fmt.Sprint(err), "Gateway/corp-bi") {
		t.Errorf("while a gateway is placed there: %v", err)
	}
	if now := len(r.names()); now != before {
		t.Errorf("a refused deletion left %d of %d resources", now, before)
	}
	var all []string
	for name := range r.names() {
		all = append(all, name)
	}
	done, err := r.svc.DeleteAll(r.ctx, DeleteSet{Objects: refs(all...), DeleteOptions: DeleteOptions{Reason: "the end"}})
	if err != nil || len(done) != before {
		t.Fatalf("all at once: %v, %v", done, err)
	}
	if left := r.names(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	audits, err := r.svc.AuditRecords(r.ctx, before)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range audits {
		if !strings.Contains(fmt.Sprintf("%+v", a.Object), "the end") {
			t.Errorf("an audit entry without the reason: %+v", a.Object)
		}
	}
}

func TestDeleteSetIsAllOrNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	set := DeleteSet{Objects: refs("DataSource/orders", "DataSource/none")}
	if _, err := r.svc.DeleteAll(r.ctx, set); errs.ClassOf(err) != errs.NotFound || !strings.Contains(fmt.Sprint(err), "DataSource/none") {
		t.Errorf("one does not exist: %v", err)
	}
	if !r.names()["DataSource/orders"] {
		t.Error("the other one went")
	}
	set.IgnoreMissing = true
	if done, err := r.svc.DeleteAll(r.ctx, set); err != nil || len(done) != 1 || done[0].Name != "orders" {
		t.Errorf("what there is: %v, %v", done, err)
	}
	if done, err := r.svc.DeleteAll(r.ctx, set); err != nil || len(done) != 0 {
		t.Errorf("nothing is there: %v, %v", done, err)
	}
	for name, bad := range map[string]DeleteSet{
		"nothing":       {},
		"twice":         {Objects: refs("NATGateway/a", "NATGateway/a")},
		"not declared":  {Objects: refs("Host/h", "NATGateway/a")},
		"a long reason": {Objects: refs("NATGateway/egress"), DeleteOptions: DeleteOptions{Reason: strings.Repeat("x", maxReason+1)}},
	} {
		if _, err := r.svc.DeleteAll(r.ctx, bad); errs.ClassOf(err) != errs.Invalid {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}

// TestDeleteSetTearsMembersDown: a gateway with a member, and the network under it.
func TestDeleteSetTearsMembersDown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	r.host()
	if err := r.svc.Wake(r.ctx, "corp-bi"); err != nil {
		t.Fatal(err)
	}
	var all []string
	for name := range r.names() {
		all = append(all, name)
	}
	if _, err := r.svc.DeleteAll(r.ctx, DeleteSet{Objects: refs(all...)}); err != nil {
		t.Fatal(err)
	}
	if m := r.fleet.Members(core.DefaultTenant); len(m) != 0 {
		t.Errorf("members that are left: %v", m)
	}
}

func TestDeleteSetNeedsAPrincipal(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if _, err := r.svc.DeleteAll(t.Context(), DeleteSet{Objects: refs("NATGateway/a")}); errs.ClassOf(err) != errs.Unauthenticated {
		t.Errorf("without a principal: %v", err)
	}
}
