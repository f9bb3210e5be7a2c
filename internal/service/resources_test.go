package service

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

func TestApplyTwice(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, a := range r.apply(example(t)...) {
		if a.Change != core.Created {
			t.Errorf("first apply: %+v", a)
		}
	}
	for _, a := range r.apply(example(t)...) {
		if a.Change != core.Unchanged {
			t.Errorf("second apply: %+v", a)
		}
	}
	docs := example(t)
	for i := range docs {
		docs[i].Spec = bytes.ReplaceAll(docs[i].Spec, []byte(password), []byte("another"))
	}
	for _, a := range r.apply(docs...) {
		want := core.Unchanged
		if a.Kind == core.KindDataSource {
			want = core.Updated
		}
		if a.Change != want {
			t.Errorf("with another password: %+v, want %s", a, want)
		}
	}
}

func TestApplyIsAllOrNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	docs := append(example(t), doc(core.KindGateway, `{"name":"bad","vnet":"nowhere","subnet":"x"}`))
	_, err := r.svc.Apply(r.ctx, docs, false)
	var refused *ApplyError
	if !errors.As(err, &refused) || refused.Problems[0].Object != "Gateway/bad" {
		t.Fatalf("got %v, want a problem of Gateway/bad", err)
	}
	for _, k := range core.Kinds() {
		if views, err := r.svc.List(r.ctx, string(k)); err != nil || len(views) != 0 {
			t.Errorf("%s: %d objects, %v; want none", k, len(views), err)
		}
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	out, err := r.svc.Apply(r.ctx, example(t), true)
	if err != nil || len(out) != 8 || out[0].Change != core.Created {
		t.Fatalf("got %v, %v", out, err)
	}
	if views, _ := r.svc.List(r.ctx, "Gateway"); len(views) != 0 {
		t.Errorf("%d gateways exist after a dry run", len(views))
	}
}

func TestUpdateWithoutPasswordKeepsIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	r.apply(doc(core.KindDataSource, `{"name":"orders","gateway":"corp-bi","type":"postgres",
		"parameters":{"host":"orders.corp.internal","database":"other"},"credentials":{"kind":"basic","username":"report"}}`))
	tgt, err := r.svc.target(r.ctx, core.DefaultTenant, "orders")
	if err != nil || tgt.source.Password != password || tgt.source.Parameters["database"] != "other" {
		t.Errorf("got %+v, %v; want the changed parameters with the password kept", tgt.source.Parameters, err)
	}
}

func TestDeleteWhatIsInUse(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	err := r.svc.Delete(r.ctx, "VirtualNetwork", "corp", DeleteOptions{})
	if errs.ClassOf(err) != errs.Conflict || !strings.Contains(fmt.Sprint(err), "Gateway/corp-bi") {
		t.Errorf("got %v, want a conflict that names the gateway", err)
	}
	if err := r.svc.Delete(r.ctx, "DataSource", "orders", DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if err := r.svc.Delete(r.ctx, "DataSource", "orders", DeleteOptions{}); errs.ClassOf(err) != errs.NotFound {
		t.Errorf("deleting it again: %v, want not found", err)
	}
	if err := r.svc.Delete(r.ctx, "Member", "m", DeleteOptions{}); errs.ClassOf(err) != errs.Invalid {
		t.Errorf("deleting a member: %v, want invalid", err)
	}
}

func TestSubnetUnderAMemberStays(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	r.host()
	if err := r.svc.Wake(r.ctx, "corp-bi"); err != nil {
		t.Fatal(err)
	}
	docs := example(t)
	for i := range docs {
		docs[i].Spec = bytes.ReplaceAll(docs[i].Spec, []byte("10.20.0.0/24"), []byte("10.20.7.0/24"))
	}
	if _, err := r.svc.Apply(r.ctx, docs, false); errs.ClassOf(err) != errs.Conflict {
		t.Fatalf("moving the subnet: %v, want a conflict", err)
	}
	if err := r.svc.Pause(r.ctx, "corp-bi"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.svc.Apply(r.ctx, docs, false); err != nil {
		t.Fatalf("moving the subnet of a paused gateway: %v", err)
	}
}
