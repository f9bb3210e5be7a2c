package service

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/config"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/fleet"
	"github.com/sluice-gateway/sluice/internal/ident"
	"github.com/sluice-gateway/sluice/internal/store"
	"github.com/sluice-gateway/sluice/internal/validate"
)

// Error implements error: the problems, one per line.
func (e *ApplyError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = strings.TrimSpace(p.Object + " " + p.Field + ": " + p.Message)
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the first problem, which carries the class.
func (e *ApplyError) Unwrap() error { return e.Problems[0] }

// errDryRun rolls an apply back.
var errDryRun = errors.New("dry run")

// apply is one apply inside its transaction.
type apply struct {
	svc    *Service
	tenant core.TenantID
	tx     store.Tx
	have   []core.Stored
	set    map[string]core.Resource // the tenant's whole set as it would stand, by object name
	order  []string                 // the objects of this apply
	done   []Applied
}

func objectName(k core.Kind, name string) string { return string(k) + "/" + name }

// Apply implements Frontend: all documents or none.
func (s *Service) Apply(ctx context.Context, docs []Document, dryRun bool) ([]Applied, error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	incoming, err := decode(docs)
	if err != nil {
		return nil, err
	}
	a := &apply{svc: s, tenant: p.Tenant, set: map[string]core.Resource{}}
	changed := false
	err = s.opts.Store.Write(ctx, func(tx store.Tx) error {
		a.tx, a.done, a.order = tx, nil, nil
		if err := a.run(incoming); err != nil {
			return err
		}
		if dryRun {
			return errDryRun
		}
		changed = false
		for _, d := range a.done {
			if d.Change == core.Unchanged {
				continue
			}
			changed = true
			if err := s.audit(tx, p, "apply", objectName(d.Kind, d.Name), string(d.Change), ""); err != nil {
				return err
			}
		}
		if !changed {
			return nil
		}
		return s.opts.Fleet.BumpGoals(tx)
	})
	if errors.Is(err, errDryRun) {
		return a.done, nil
	}
	if err != nil {
		return nil, err
	}
	if changed {
		s.resourcesChanged(p.Tenant)
	}
	return a.done, nil
}

// AwaitHosts implements Frontend.
func (s *Service) AwaitHosts(ctx context.Context, most time.Duration) ([]fleet.Acting, error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	return s.opts.Fleet.AwaitGoals(ctx, p.Tenant)
}

// decode reads the documents strictly.
func decode(docs []Document) ([]core.Resource, error) {
	var problems []*errs.Error
	var out []core.Resource
	seen := map[string]bool{}
	for _, d := range docs {
		r, bad := config.DecodeJSON(d.Kind, d.Spec)
		problems = append(problems, bad...)
		if r == nil || len(bad) > 0 {
			continue
		}
		name := objectName(r.Kind(), r.ResourceName())
		if seen[name] {
			problems = append(problems, errs.New(errs.Invalid, "it appears twice in one apply").On(name, ""))
		}
		seen[name] = true
		out = append(out, r)
	}
	if len(problems) > 0 {
		return nil, &ApplyError{Problems: problems}
	}
	if len(out) == 0 {
		return nil, errs.New(errs.Invalid, "there is nothing to apply")
	}
	return out, nil
}

func (a *apply) run(incoming []core.Resource) (err error) {
	if a.have, err = a.tx.ListResources(a.tenant, ""); err != nil {
		return err
	}
	clear(a.set)
	before := map[string]core.Stored{}
	for _, r := range a.have {
		name := objectName(r.Spec.Kind(), r.Spec.ResourceName())
		a.set[name], before[name] = r.Spec, r
	}
	for _, r := range incoming {
		validate.Defaults(r)
		name := objectName(r.Kind(), r.ResourceName())
		keepAddress(r, before[name].Spec)
		a.set[name] = r
		a.order = append(a.order, name)
	}
	if err := a.check(); err != nil {
		return err
	}
	for _, name := range a.order {
		if err := a.put(a.set[name], before[name]); err != nil {
			return err
		}
	}
	return nil
}

// keepAddress lets an endpoint that names no address keep the one that it was given.
func keepAddress(r, before core.Resource) {
	e, ok := r.(*core.PrivateEndpoint)
	if !ok || e.Address.IsValid() {
		return
	}
	if old, ok := before.(*core.PrivateEndpoint); ok && old.VNet == e.VNet && old.Subnet == e.Subnet {
		e.Address = old.Address
	}
}

// check validates the set as it would stand, and what runs against it.
func (a *apply) check() error {
	leases, err := a.tx.ListLeases(a.tenant)
	if err != nil {
		return err
	}
	all := make([]core.Resource, 0, len(a.set))
	for _, name := range sortedKeys(a.set) {
		all = append(all, a.set[name])
	}
	problems := validate.AssignAddresses(all, func(vnet string, addr netip.Addr) bool {
		return slices.ContainsFunc(leases, func(l core.Lease) bool { return l.VNet == vnet && l.Address == addr })
	})
	problems = append(problems, validate.Set(all)...)
	guarded := a.guard(a.svc.opts.Fleet.Explain(leases))
	problems = withoutEchoes(problems, guarded, links(a.have, leases))
	if problems = append(problems, guarded...); len(problems) == 0 {
		problems = a.moved()
	}
	if len(problems) > 0 {
		return &ApplyError{Problems: problems}
	}
	return nil
}

// moved finds gateways that would leave members behind in another subnet.
func (a *apply) moved() []*errs.Error {
	var out []*errs.Error
	for _, m := range a.svc.opts.Fleet.Members(a.tenant) {
		gw, ok := a.set[objectName(core.KindGateway, m.Gateway)].(*core.Gateway)
		if ok && (gw.VNet != m.VNet || gw.Subnet != m.Subnet) {
			out = append(out, errs.New(errs.Conflict, "the gateway has member %s in %s/%s and can't move while it runs", m.ID, m.VNet, m.Subnet).
				On(objectName(core.KindGateway, m.Gateway), "subnet").WithHint("\"sluice gateway pause %s\" first", m.Gateway))
		}
	}
	return out
}

// put writes one resource if it differs from the stored one.
func (a *apply) put(r core.Resource, old core.Stored) error {
	password := takePassword(r)
	now := a.svc.now()
	next := core.Stored{Tenant: a.tenant, UID: old.UID, Version: old.Version + 1, CreatedAt: old.CreatedAt, UpdatedAt: now, Spec: r}
	change := core.Updated
	if old.Spec == nil {
		change, next.UID, next.CreatedAt = core.Created, ident.New("r"), now
	} else if same, err := a.same(r, old, password); err != nil {
		return err
	} else if same {
		change = core.Unchanged
	}
	a.done = append(a.done, Applied{Kind: r.Kind(), Name: r.ResourceName(), Change: change})
	if change == core.Unchanged {
		return nil
	}
	if err := a.tx.PutResource(next); err != nil {
		return err
	}
	if password.IsZero() {
		return nil
	}
	sealed, err := a.svc.opts.Sealer.Seal(password, string(a.tenant), next.UID, passwordField)
	if err != nil {
		return err
	}
	return a.tx.PutSecret(a.tenant, next.UID, passwordField, sealed)
}

// takePassword takes the secret out of a resource, so that it can't be stored with it.
func takePassword(r core.Resource) core.Secret {
	ds, ok := r.(*core.DataSource)
	if !ok {
		return core.Secret{}
	}
	password := ds.Credentials.Password
	ds.Credentials.Password = core.Secret{}
	return password
}

// same reports whether a resource says what the stored one says, password included.
func (a *apply) same(r core.Resource, old core.Stored, password core.Secret) (bool, error) {
	x, err := json.Marshal(r)
	if err != nil {
		return false, err
	}
	y, err := json.Marshal(old.Spec)
	if err != nil {
		return false, err
	}
	if !bytes.Equal(x, y) {
		return false, nil
	}
	if password.IsZero() {
		return true, nil
	}
	sealed, err := a.tx.GetSecret(a.tenant, old.UID, passwordField)
	if errs.ClassOf(err) == errs.NotFound {
		return false, nil
	} else if err != nil {
		return false, err
	}
	have, err := a.svc.opts.Sealer.Open(sealed, string(a.tenant), old.UID, passwordField)
	return err == nil && have.Reveal() == password.Reveal(), nil
}

// Delete implements Frontend. A gateway's members are torn down first; with force
// the gateway goes without waiting for that, and the addresses stay leased until
// their host confirms.
func (s *Service) Delete(ctx context.Context, kind, name string, how DeleteOptions) error {
	p, err := caller(ctx)
	if err != nil {
		return err
	}
	if err := how.check(); err != nil {
		return err
	}
	switch kind {
	case KindHost:
		return s.forgetHost(ctx, p, name, how)
	case KindLease:
		return s.deleteLease(ctx, p, name, how)
	case KindLink:
		return s.deleteLink(ctx, p, name, how)
	}
	k := core.Kind(kind)
	if core.New(k) == nil {
		return errs.New(errs.Invalid, "%s can't be deleted", kind).WithHint("a member goes when its gateway is paused; queries and audits are kept for a time")
	}
	switch {
	case k == core.KindGateway && !how.Force:
		err = s.pauseForGood(ctx, p, name)
	case k == core.KindVirtualNetwork && how.Force:
		err = s.releaseNetwork(ctx, p, name, how)
	}
	if err != nil {
		return err
	}
	err = s.opts.Store.Write(ctx, func(tx store.Tx) error { return s.deleteOne(tx, p, k, name, how) })
	if err != nil {
		return err
	}
	s.resourcesChanged(p.Tenant)
	if k == core.KindGateway { // a query may have woken it since the pause
		s.opts.Fleet.Abandon(name, p.Tenant, "its gateway was deleted")
	}
	return nil
}

// pauseForGood tears the members of a gateway down that is to be deleted.
func (s *Service) pauseForGood(ctx context.Context, p core.Principal, name string) error {
	err := s.opts.Store.Read(ctx, func(tx store.Tx) error { return deletable(tx, p.Tenant, core.KindGateway, name, nil) })
	if err != nil {
		return err // before anything is torn down
	}
	ref, err := s.gatewayRef(ctx, p.Tenant, name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	return s.opts.Fleet.Pause(ctx, ref, "its gateway is being deleted")
}

// forgetHost forgets a host; with force also the members of one that is lost.
func (s *Service) forgetHost(ctx context.Context, p core.Principal, name string, how DeleteOptions) error {
	hosts, err := s.hosts(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(hosts, func(h core.Host) bool { return h.Name == name }) {
		return errs.New(errs.NotFound, "Host/%s does not exist", name).On("Host/"+name, "")
	}
	n, err := s.opts.Fleet.ForgetHost(ctx, name, how.Force, released(p, how), s.auditRelease(p, how))
	if err != nil {
		return err
	}
	return s.opts.Store.Write(ctx, func(tx store.Tx) error {
		note := ""
		if how.Force {
			note = fmt.Sprintf("by force: %s released without its confirmation", count(n, "lease was", "leases were"))
		}
		return s.audit(tx, p, "delete", "Host/"+name, note, how.Reason)
	})
}

// deletable says why a resource can't be deleted. Leases are those of the tenant.
func deletable(tx store.Tx, t core.TenantID, k core.Kind, name string, leases []core.Lease) error {
	all, err := tx.ListResources(t, "")
	if err != nil {
		return err
	}
	set := make([]core.Resource, len(all))
	found := false
	for i, r := range all {
		set[i] = r.Spec
		found = found || r.Spec.Kind() == k && r.Spec.ResourceName() == name
	}
	if !found {
		object := objectName(k, name)
		return errs.New(errs.NotFound, "%s does not exist", object).On(object, "")
	}
	if err := deleteLinks(all, leases, k, name); err != nil {
		return err
	}
	return blockers(set, k, name)
}

func (s *Service) deleteOne(tx store.Tx, p core.Principal, k core.Kind, name string, how DeleteOptions) error {
	leases, err := tx.ListLeases(p.Tenant)
	if err != nil {
		return err
	}
	leases = s.opts.Fleet.Explain(leases)
	if err := deletable(tx, p.Tenant, k, name, leases); err != nil {
		return err
	}
	if err := tx.DeleteResource(p.Tenant, k, name); err != nil {
		return err
	}
	if err := s.audit(tx, p, "delete", objectName(k, name), deletedNote(k, name, how, leases), how.Reason); err != nil {
		return err
	}
	return s.opts.Fleet.BumpGoals(tx)
}

// deletedNote says what a deletion by force left behind.
func deletedNote(k core.Kind, name string, how DeleteOptions, leases []core.Lease) string {
	if !how.Force {
		return ""
	}
	held := 0
	for _, l := range leases {
		if k == core.KindGateway && l.Gateway == name && !l.Ended() {
			held++
		}
	}
	if held == 0 {
		return "by force"
	}
	return fmt.Sprintf("by force: %s leased until the teardown is confirmed", count(held, "address stays", "addresses stay"))
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
