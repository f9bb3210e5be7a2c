package service

import (
	"context"
	"fmt"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

// DeleteOptions say how something is deleted.
type DeleteOptions struct {
	// Force does without the confirmation of hosts that can't give it.
	Force bool
	// Reason is kept in the audit log.
	Reason string
}

// deleteLease ends a lease by force. Without force it can't: leases end by themselves.
func (s *Service) deleteLease(ctx context.Context, p core.Principal, name string, how DeleteOptions) error {
	leases, err := s.opts.Fleet.Leases(ctx, p.Tenant)
	if err != nil {
		return err
	}
	l, err := findLease(leases, name)
	if err != nil {
		return err
	}
	if !how.Force {
		return errs.New(errs.Conflict, "Lease/%s is held by member %s of gateway %s: %s", name, l.Member, l.Gateway, l.Reason).On("Lease/"+name, "").
			WithHint("leases end by themselves: pause the gateway; --force --reason WHY releases one whose host is lost for good")
	}
	return s.release(ctx, p, []core.Lease{l}, how)
}

// deleteLink releases by force what keeps a link whose host is silent.
func (s *Service) deleteLink(ctx context.Context, p core.Principal, name string, how DeleteOptions) error {
	all, err := s.links(ctx, p.Tenant)
	if err != nil {
		return err
	}
	for _, l := range all {
		if l.Name != name {
			continue
		}
		if !how.Force || len(l.leases) == 0 {
			return errs.New(errs.Conflict, "Link/%s is kept by %s: %s", name, l.Owner, l.Reason).On("Link/"+name, "").WithHint("%s", l.remedy())
		}
		return s.release(ctx, p, l.leases, how)
	}
	return errs.New(errs.NotFound, "Link/%s does not exist", name).On("Link/"+name, "").WithHint("\"sluice get links\" lists them")
}

// release ends leases on the administrator's word, all that can be or, if one can't, none.
func (s *Service) release(ctx context.Context, p core.Principal, leases []core.Lease, how DeleteOptions) error {
	for _, l := range leases {
		if err := s.opts.Fleet.Stale(l); err != nil {
			return err
		}
	}
	reason := released(p, how)
	for _, l := range leases {
		if err := s.opts.Fleet.Release(ctx, l, reason, s.auditRelease(p, how)); err != nil {
			return err
		}
	}
	return nil
}

// released says in words who ended a lease, and why.
func released(p core.Principal, how DeleteOptions) string {
	reason := "released by " + p.Name + " without the confirmation of its host"
	if how.Reason != "" {
		reason += ": " + how.Reason
	}
	return reason
}

// auditRelease keeps an entry about each lease that was ended by force, in the
// transaction that ends it.
func (s *Service) auditRelease(p core.Principal, how DeleteOptions) func(store.Tx, core.Lease) error {
	return func(tx store.Tx, l core.Lease) error {
		note := fmt.Sprintf("by force: member %s (generation %d) of gateway %s on host %s; ", l.Member, l.Generation, l.Gateway, l.Host)
		if l.Ended() {
			note += "its quarantine was cut short"
		} else {
			note += "its teardown is not confirmed"
		}
		return s.audit(tx, p, "release", "Lease/"+l.VNet+"/"+l.Address.String(), note, how.Reason)
	}
}

// releaseNetwork releases by force every lease in a network that is to be deleted.
func (s *Service) releaseNetwork(ctx context.Context, p core.Principal, name string, how DeleteOptions) error {
	err := s.opts.Store.Read(ctx, func(tx store.Tx) error { return deletable(tx, p.Tenant, core.KindVirtualNetwork, name, nil) })
	if err != nil {
		return err // before anything is released
	}
	all, err := s.links(ctx, p.Tenant)
	if err != nil {
		return err
	}
	var held []core.Lease
	for _, l := range all {
		if l.VNet == name {
			held = append(held, l.leases...)
		}
	}
	return s.release(ctx, p, held, how)
}

func (s *Service) links(ctx context.Context, t core.TenantID) ([]Link, error) {
	sn, err := s.snap(ctx, t)
	if err != nil {
		return nil, err
	}
	leases, err := s.opts.Fleet.Leases(ctx, t)
	return links(sn.all, leases), err
}

// maxReason bounds the reason that an administrator gives, in bytes.
const maxReason = 1000

func (o *DeleteOptions) check() error {
	o.Reason = strings.TrimSpace(o.Reason)
	if len(o.Reason) > maxReason {
		return errs.New(errs.Invalid, "the reason has %d bytes, at most %d are kept", len(o.Reason), maxReason)
	}
	return nil
}
