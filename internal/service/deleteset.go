package service

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
	"github.com/sluice-gateway/sluice/internal/validate"
)

// ObjectRef names a declared resource.
type ObjectRef struct {
	Kind core.Kind `json:"kind"`
	Name string    `json:"name"`
}

// String returns "Kind/name".
func (o ObjectRef) String() string { return objectName(o.Kind, o.Name) }

// DeleteSet is several resources that go in one change: what refers to another of them
// does not stand in its way.
type DeleteSet struct {
	Objects []ObjectRef
	// IgnoreMissing leaves out what does not exist, in place of refusing the whole.
	IgnoreMissing bool
	DeleteOptions
}

// DeleteAll implements Frontend: all or none. The members of gateways are torn down
// before that, so a gateway may be paused by a deletion that fails in the end.
func (s *Service) DeleteAll(ctx context.Context, in DeleteSet) ([]Applied, error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	if err := in.check(); err != nil {
		return nil, err
	}
	var going []ObjectRef
	err = s.opts.Store.Read(ctx, func(tx store.Tx) (err error) {
		going, err = in.plan(tx, p.Tenant, nil)
		return err
	})
	if err != nil {
		return nil, err // before anything is torn down
	}
	if !in.Force {
		if err := s.pauseAll(ctx, p, going); err != nil {
			return nil, err
		}
	}
	err = s.opts.Store.Write(ctx, func(tx store.Tx) (err error) {
		going, err = s.deleteSet(tx, p, in)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make([]Applied, len(going))
	for i, o := range going {
		out[i] = Applied{Kind: o.Kind, Name: o.Name, Change: core.Deleted}
	}
	if len(going) > 0 {
		s.resourcesChanged(p.Tenant)
	}
	for _, o := range going {
		if o.Kind == core.KindGateway { // a query may have woken it since the pause
			s.opts.Fleet.Abandon(o.Name, p.Tenant, "its gateway was deleted")
		}
	}
	return out, nil
}

func (in *DeleteSet) check() error {
	if err := in.DeleteOptions.check(); err != nil {
		return err
	}
	if len(in.Objects) == 0 {
		return errs.New(errs.Invalid, "there is nothing to delete")
	}
	for i, o := range in.Objects {
		if core.New(o.Kind) == nil {
			return errs.New(errs.Invalid, "%s can't be deleted together with others", o).WithHint("\"sluice delete %s %s\" alone", strings.ToLower(string(o.Kind)), o.Name)
		}
		if slices.Contains(in.Objects[:i], o) {
			return errs.New(errs.Invalid, "%s is named twice", o).On(o.String(), "")
		}
	}
	return nil
}

// plan says what goes, or why nothing can. Leases are those of the tenant.
func (in *DeleteSet) plan(tx store.Tx, t core.TenantID, leases []core.Lease) ([]ObjectRef, error) {
	all, err := tx.ListResources(t, "")
	if err != nil {
		return nil, err
	}
	there := map[ObjectRef]bool{}
	var rest []core.Resource
	var stored []core.Stored
	for _, r := range all {
		o := ObjectRef{r.Spec.Kind(), r.Spec.ResourceName()}
		if there[o] = true; !slices.Contains(in.Objects, o) {
			rest, stored = append(rest, r.Spec), append(stored, r)
		}
	}
	var going []ObjectRef
	for _, o := range in.Objects {
		switch {
		case there[o]:
			going = append(going, o)
		case !in.IgnoreMissing:
			return nil, errs.New(errs.NotFound, "%s does not exist, so nothing was deleted", o).On(o.String(), "").
				WithHint("--ignore-not-found deletes what there is")
		}
	}
	for _, o := range going {
		if err := deleteLinks(stored, leases, o.Kind, o.Name); err != nil {
			return nil, err
		}
		if by := validate.DeleteBlockers(rest, o.Kind, o.Name); len(by) > 0 {
			return nil, errs.New(errs.Conflict, "%s is in use by %s, so nothing was deleted", o, strings.Join(by, ", ")).On(o.String(), "").
				WithHint("delete what uses it together with it, or apply that without the reference")
		}
	}
	return going, nil
}

// pauseAll tears down the members of the gateways among what goes.
func (s *Service) pauseAll(ctx context.Context, p core.Principal, going []ObjectRef) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	for _, o := range going {
		if o.Kind != core.KindGateway {
			continue
		}
		ref, err := s.gatewayRef(ctx, p.Tenant, o.Name)
		if err != nil {
			return err
		}
		if err := s.opts.Fleet.Pause(ctx, ref, "its gateway is being deleted"); err != nil {
			return fmt.Errorf("%s: %w", o, err)
		}
	}
	return nil
}

// deleteSet deletes what there is of a set, inside a transaction.
func (s *Service) deleteSet(tx store.Tx, p core.Principal, in DeleteSet) ([]ObjectRef, error) {
	leases, err := tx.ListLeases(p.Tenant)
	if err != nil {
		return nil, err
	}
	leases = s.opts.Fleet.Explain(leases)
	going, err := in.plan(tx, p.Tenant, leases)
	if err != nil || len(going) == 0 {
		return nil, err
	}
	for _, o := range going {
		if err := tx.DeleteResource(p.Tenant, o.Kind, o.Name); err != nil {
			return nil, err
		}
		note := deletedNote(o.Kind, o.Name, in.DeleteOptions, leases)
		if err := s.audit(tx, p, "delete", o.String(), note, in.Reason); err != nil {
			return nil, err
		}
	}
	return going, s.opts.Fleet.BumpGoals(tx)
}
