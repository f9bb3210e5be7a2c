package service

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

// wantRefusal checks a conflict by what a person has to read: owner, reason, remedy.
func wantRefusal(t *testing.T, err error, hint string, words ...string) {
	t.Helper()
	if errs.ClassOf(err) != errs.Conflict {
		t.Errorf("got %v, want a conflict", err)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q lacks %q", err, w)
		}
	}
	if got := errs.As(err).Hint; !strings.Contains(got, hint) {
		t.Errorf("the hint %q lacks %q", got, hint)
	}
}

// subnet returns the status of a subnet of the example's network.
func (r *rig) subnet(name string) SubnetStatus {
	r.t.Helper()
	v, err := r.svc.Get(r.ctx, "VirtualNetwork", "corp")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range v.Status.(VNetStatus).Subnets {
		if s.Name == name {
			return s
		}
	}
	r.t.Fatalf("there is no subnet %s", name)
	return SubnetStatus{}
}

// replaced is the example with one text in place of another.
func replaced(t *testing.T, old, by string) []Document {
	t.Helper()
	docs, changed := example(t), false
	for i := range docs {
		with := bytes.ReplaceAll(docs[i].Spec, []byte(old), []byte(by))
		changed = changed || !bytes.Equal(with, docs[i].Spec)
		docs[i].Spec = with
	}
	if !changed {
		t.Fatalf("the example lacks %s", old)
	}
	return docs
}

// TestLinkFromTheGatewayToTheLastTeardown follows the status of a delegation and its link.
func TestLinkFromTheGatewayToTheLastTeardown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	docs := example(t)
	var vnet, rest []Document
	for _, d := range docs {
		if d.Kind == core.KindGateway || d.Kind == core.KindDataSource {
			rest = append(rest, d)
		} else {
			vnet = append(vnet, d)
		}
	}
	r.apply(vnet...)
	if s := r.subnet("gateways"); s.Delegation != "Ready" || len(s.Links) != 0 {
		t.Errorf("before the gateway: %+v", s)
	}
	if s := r.subnet("data"); s.Delegation != "NotDelegated" || len(s.Links) != 0 {
		t.Errorf("a subnet without delegation: %+v", s)
	}
	r.apply(rest...)
	s := r.subnet("gateways")
	if s.Delegation != "InUse" || len(s.Links) != 1 || s.Links[0].Owner != "Gateway/corp-bi" || s.Links[0].State != LinkActive || s.Links[0].Reason != "the gateway is placed in the subnet" {
		t.Errorf("with the gateway: %+v", s)
	}
	host := r.awayHost()
	if err := r.svc.Wake(r.ctx, "corp-bi"); err != nil {
		t.Fatal(err)
	}
	if l := r.subnet("gateways").Links[0]; len(l.Addresses) != 1 || !strings.Contains(l.Reason, "1 address is held by its members") || l.Since.IsZero() {
		t.Errorf("with a member: %+v", l)
	}
	host() // it can't confirm anything any more
	if err := r.svc.Delete(r.ctx, "DataSource", "orders", DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := r.svc.Delete(r.ctx, "Gateway", "corp-bi", DeleteOptions{Force: true, Reason: "moved"}); err != nil {
		t.Fatal(err)
	}
	s = r.subnet("gateways")
	if s.Delegation != "InUse" || len(s.Links) != 1 || s.Links[0].State != LinkLeaving ||
		!strings.Contains(s.Links[0].Reason, "does not exist any more") {
		t.Errorf("after the gateway, before the teardown: %+v", s)
	}
	wantRefusal(t, r.svc.Delete(r.ctx, "VirtualNetwork", "corp", DeleteOptions{}), "sluice get leases", "Gateway/corp-bi", "does not exist any more", "subnet gateways")
	r.host()
	r.eventually("the link goes with the confirmed teardown", func() bool { return r.subnet("gateways").Delegation == "Ready" })
	if got, err := r.svc.List(r.ctx, KindLink); err != nil || len(got) != 0 {
		t.Errorf("links %+v, %v; want none", got, err)
	}
}

func (r *rig) eventually(what string, cond func() bool) {
	r.t.Helper()
	for end := time.Now().Add(15 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("not within 15 s: %s", what)
		}
	}
}

// TestSubnetUnderALinkStays: neither removal of the subnet nor of its delegation, also
// when the gateway is paused.
func TestSubnetUnderALinkStays(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	for name, c := range map[string]struct {
		old, by, what, field string
	}{
		"delegation": {`"delegation":"sluice/gateways",`, "", "the delegation of subnet gateways can't be removed", "subnets[0].delegation"},
		"other":      {`"delegation":"sluice/gateways",`, `"delegation":"vendor/service",`, "the delegation of subnet gateways", "subnets[0].delegation"},
		"removed":    {`"name":"gateways"`, `"name":"renamed"`, "subnet gateways can't be removed", "subnets"},
	} {
		t.Run(name, func(t *testing.T) {
			docs := example(t)
			for i := range docs {
				if docs[i].Kind == core.KindVirtualNetwork {
					docs[i].Spec = bytes.Replace(canonical(t, docs[i].Spec), []byte(c.old), []byte(c.by), 1)
				}
			}
			_, err := r.svc.Apply(r.ctx, docs, false)
			wantRefusal(t, err, "sluice delete gateway corp-bi", c.what, "Gateway/corp-bi", "the gateway is placed in the subnet")
			var refused *ApplyError
			if errors.As(err, &refused) && (len(refused.Problems) != 1 || refused.Problems[0].Object != "VirtualNetwork/corp" || refused.Problems[0].Field != c.field) {
				t.Errorf("problems %+v", refused.Problems)
			}
		})
	}
	if got := r.subnet("gateways"); got.Delegation != "InUse" {
		t.Errorf("afterwards: %+v", got)
	}
	// Together with the gateway it may go elsewhere, while nothing runs.
	docs := replaced(t, `"subnet":"gateways"`, `"subnet":"other"`)
	for i := range docs {
		if docs[i].Kind == core.KindVirtualNetwork {
			docs[i].Spec = bytes.Replace(canonical(t, docs[i].Spec), []byte(`"name":"gateways"`), []byte(`"name":"other"`), 1)
		}
	}
	if _, err := r.svc.Apply(r.ctx, docs, false); err != nil {
		t.Errorf("moving subnet and gateway at once: %v", err)
	}
}

// canonical is JSON with sorted keys and no spaces.
func canonical(t *testing.T, doc []byte) []byte {
	t.Helper()
	var v any
	if err := json.Unmarshal(doc, &v); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestANewMistakeIsNoLink: what a gateway lacks from the start is told as that.
func TestANewMistakeIsNoLink(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	docs := replaced(t, "sluice/gateways", "vendor/service")
	_, err := r.svc.Apply(r.ctx, docs, false)
	if errs.ClassOf(err) != errs.Invalid || strings.Contains(err.Error(), "link") {
		t.Errorf("got %v", err)
	}
}

// TestReleaseOfAStaleLink: with the host away, lease, link and network go by force, each
// with an entry of who, what and why; with the host connected they don't.
func TestReleaseOfAStaleLink(t *testing.T) {
	t.Parallel()
	const why = "rack 7 burnt down"
	for _, tt := range []struct{ name, kind, object string }{
		{"by its lease", KindLease, ""},
		{"by its network and address", KindLease, "corp/"},
		{"by its link", KindLink, "corp/gateways/corp-bi"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.apply(example(t)...)
			away := r.awayHost()
			if err := r.svc.Wake(r.ctx, "corp-bi"); err != nil {
				t.Fatal(err)
			}
			l := r.onlyLease()
			name := tt.object
			if tt.kind == KindLease {
				name += l.Address.String()
			}
			force := DeleteOptions{Force: true, Reason: why}
			wantRefusal(t, r.svc.Delete(r.ctx, tt.kind, name, DeleteOptions{}), "", "corp-bi")
			wantRefusal(t, r.svc.Delete(r.ctx, tt.kind, name, force), "pause gateway corp-bi", l.Member, "which is connected")
			away()
			if err := r.svc.Delete(r.ctx, tt.kind, name, force); err != nil {
				t.Fatal(err)
			}
			got := r.onlyLease()
			if got.State != core.LeaseQuarantined || !strings.Contains(got.Reason, "released by ann") || !strings.Contains(got.Reason, why) {
				t.Errorf("the lease: %+v", got)
			}
			if n := len(r.fleet.Members(core.DefaultTenant)); n != 0 {
				t.Errorf("%d members are left", n)
			}
			e := r.audits()[0]
			if e.Who != "ann" || e.Act != "release" || e.Object != "Lease/corp/"+l.Address.String() || e.Why != why || !strings.Contains(e.Note, l.Member) || e.At.IsZero() {
				t.Errorf("the entry: %+v", e)
			}
		})
	}
}

// TestNetworkOfALostHost: --force takes a network whose members' host is lost.
func TestNetworkOfALostHost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	away := r.awayHost()
	if err := r.svc.Wake(r.ctx, "corp-bi"); err != nil {
		t.Fatal(err)
	}
	away()
	force := DeleteOptions{Force: true}
	if err := r.svc.Delete(r.ctx, "VirtualNetwork", "corp", force); errs.ClassOf(err) != errs.Conflict || r.onlyLease().State != core.LeaseHeld {
		t.Errorf("with a gateway in it: %v", err)
	}
	for _, d := range []struct{ kind, name string }{
		{"DataSource", "orders"}, {"Gateway", "corp-bi"}, {"PrivateEndpoint", "orders-db"}, {"PrivateDNSZone", "corp.internal"},
	} {
		if err := r.svc.Delete(r.ctx, d.kind, d.name, force); err != nil {
			t.Fatalf("%s: %v", d.name, err)
		}
	}
	r.apply(doc(core.KindVirtualNetwork, `{"name":"corp","addressSpace":["10.20.0.0/16"],"subnets":[{"name":"gateways","prefix":"10.20.0.0/24","delegation":"sluice/gateways"}]}`))
	if err := r.svc.Delete(r.ctx, "NATGateway", "egress", force); err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, r.svc.Delete(r.ctx, "VirtualNetwork", "corp", DeleteOptions{}), "", "Gateway/corp-bi")
	if err := r.svc.Delete(r.ctx, "VirtualNetwork", "corp", force); err != nil {
		t.Fatal(err)
	}
	entries := r.audits()
	if entries[0].Object != "VirtualNetwork/corp" || entries[0].Note != "by force" || entries[1].Act != "release" {
		t.Errorf("entries %+v", entries[:2])
	}
}

func (r *rig) onlyLease() core.Lease {
	r.t.Helper()
	views, err := r.svc.List(r.ctx, KindLease)
	if err != nil || len(views) != 1 {
		r.t.Fatalf("leases %+v, %v; want one", views, err)
	}
	return views[0].Object.(core.Lease)
}

func (r *rig) audits() []store.AuditEntry {
	r.t.Helper()
	views, err := r.svc.AuditRecords(r.ctx, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []store.AuditEntry
	for _, v := range views {
		out = append(out, v.Object.(store.AuditEntry))
	}
	return out
}

// TestEveryChangeIsAudited: who did what, in order; nothing that changed nothing; and no
// secret.
func TestEveryChangeIsAudited(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	docs := example(t)
	r.apply(docs...)
	r.apply(example(t)...) // changes nothing
	if _, err := r.svc.Apply(r.ctx, replaced(t, `30m`, `45m`), true); err != nil {
		t.Fatal(err)
	}
	r.apply(replaced(t, password, "another-password")...)
	r.host()
	for _, act := range []func(context.Context, string) error{r.svc.Wake, r.svc.Restart, r.svc.Pause} {
		if err := act(r.ctx, "corp-bi"); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.svc.Delete(r.ctx, "VirtualNetwork", "corp", DeleteOptions{}); err == nil {
		t.Fatal("a network in use was deleted")
	}
	if err := r.svc.Delete(r.ctx, "DataSource", "orders", DeleteOptions{Reason: "not used"}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range r.audits() {
		if e.Who != "ann" || e.At.IsZero() || e.Tenant != core.DefaultTenant {
			t.Errorf("entry %+v", e)
		}
		got = append([]string{strings.TrimSpace(e.Act + " " + e.Object + " " + e.Note + " " + e.Why)}, got...)
	}
	var want []string
	for _, d := range docs {
		var name struct{ Name string }
		_ = json.Unmarshal(d.Spec, &name)
		want = append(want, fmt.Sprintf("apply %s/%s created", d.Kind, name.Name))
	}
	want = append(want, "apply DataSource/orders updated", "wake Gateway/corp-bi done", "restart Gateway/corp-bi done", "pause Gateway/corp-bi done", "delete DataSource/orders  not used")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, e := range r.audits() {
		if text := fmt.Sprintf("%+v", e); strings.Contains(text, password) || strings.Contains(text, "another-password") {
			t.Errorf("an entry holds a secret: %s", text)
		}
	}
	other := core.WithPrincipal(r.ctx, core.Principal{Tenant: "other", Name: "eve", Role: core.RoleAdmin})
	if views, err := r.svc.AuditRecords(other, 0); err != nil || len(views) != 0 {
		t.Errorf("another tenant reads %+v, %v", views, err)
	}
	id := fmt.Sprint(r.audits()[0].ID)
	if v, err := r.svc.Get(r.ctx, KindAudit, id); err != nil || v.Object.(store.AuditEntry).Act != "delete" {
		t.Errorf("one entry: %+v, %v", v, err)
	}
	for _, id := range []string{"0", "x"} {
		if _, err := r.svc.Get(r.ctx, KindAudit, id); errs.ClassOf(err) != errs.NotFound {
			t.Errorf("entry %s: %v", id, err)
		}
	}
}

// TestAuditIsKeptForItsTime and no longer.
func TestAuditIsKeptForItsTime(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	n := len(r.audits())
	purge := func(later time.Duration) {
		r.svc.now = func() time.Time { return time.Now().Add(later) }
		if err := r.svc.opts.Store.Write(r.ctx, r.svc.purgeAudit); err != nil {
			t.Fatal(err)
		}
	}
	if purge(DefaultKeepAudit - time.Hour); len(r.audits()) != n || n == 0 {
		t.Errorf("%d of %d entries are left before their time", len(r.audits()), n)
	}
	if purge(DefaultKeepAudit + time.Hour); len(r.audits()) != 0 {
		t.Errorf("%d entries are left after their time", len(r.audits()))
	}
}

// TestReasonIsBounded: what is kept for a year is not of any length.
func TestReasonIsBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	err := r.svc.Delete(r.ctx, "DataSource", "orders", DeleteOptions{Reason: strings.Repeat("x", maxReason+1)})
	if errs.ClassOf(err) != errs.Invalid {
		t.Errorf("got %v", err)
	}
}
