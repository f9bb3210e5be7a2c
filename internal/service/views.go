package service

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/fleet"
	"github.com/sluice-gateway/sluice/internal/store"
)

// The kinds of objects that exist at run time and that users see but don't declare.
const (
	KindMember = "Member"
	KindLease  = "Lease"
	KindHost   = "Host"
	KindQuery  = "Query"
	KindLink   = "Link"
	KindAudit  = "Audit"
)

// ResourceStatus is the status of a declared resource.
type ResourceStatus struct {
	UID     string `json:"uid"`
	Version int64  `json:"version"`
	Updated string `json:"updated"` // RFC 3339
}

// GatewayStatus is the status of a gateway.
type GatewayStatus struct {
	ResourceStatus
	State   core.GatewayState `json:"state"`
	Since   time.Time         `json:"since,omitzero"` // zero: it has never been anything else
	Reason  string            `json:"reason,omitempty"`
	Problem string            `json:"problem,omitempty"` // why it has fewer members than it should, or others
	Members []MemberStatus    `json:"members,omitempty"`
	History []core.Transition `json:"history,omitempty"` // the newest first, the last 20
	// MemberHistory is the same of its members, those that are gone included. Only a gateway
	// that is shown by itself has it.
	MemberHistory []MemberChange `json:"memberHistory,omitempty"`
	// Classes say what waits, what runs and what could, by query class.
	Classes map[core.QueryClass]fleet.Demand `json:"classes,omitempty"`
}

// MemberChange is a change of state of one of a gateway's members.
type MemberChange struct {
	Member string `json:"member"`
	core.Transition
}

// MemberHistory is the status of a member that is shown by itself.
type MemberHistory struct {
	History []core.Transition `json:"history,omitempty"` // the newest first, the last 20
}

// MemberStatus is one member in the status of its gateway.
type MemberStatus struct {
	ID       string           `json:"id"`
	State    core.MemberState `json:"state"`
	Address  string           `json:"address"`
	Host     string           `json:"host"`
	InFlight int              `json:"inFlight"`
	Image    string           `json:"image,omitempty"` // of the program that it runs
	Reason   string           `json:"reason,omitempty"`
}

// SubnetStatus is one subnet in the status of a virtual network.
type SubnetStatus struct {
	Name string `json:"name"`
	// Delegation is Ready, InUse, NotDelegated or DelegatedToOther.
	Delegation string `json:"delegation"`
	Links      []Link `json:"links,omitempty"` // who holds the subnet, and why
}

// VNetStatus is the status of a virtual network.
type VNetStatus struct {
	ResourceStatus
	Subnets  []SubnetStatus  `json:"subnets"`
	Peerings []PeeringStatus `json:"peerings,omitempty"`
}

// List implements Frontend.
func (s *Service) List(ctx context.Context, kind string) ([]View, error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	switch kind {
	case KindMember:
		return s.memberViews(ctx, p.Tenant)
	case KindHost:
		hosts, err := s.hosts(ctx)
		return viewsOf(KindHost, hosts, func(h core.Host) string { return h.Name }), err
	case KindLease:
		leases, err := s.opts.Fleet.Leases(ctx, p.Tenant)
		return leaseViews(leases), err
	case KindLink:
		all, err := s.links(ctx, p.Tenant)
		return viewsOf(KindLink, all, func(l Link) string { return l.Name }), err
	case KindAudit:
		return s.AuditRecords(ctx, 0)
	case KindQuery:
		records, err := s.QueryRecords(ctx, "", 0)
		return viewsOf(KindQuery, records, func(q core.Query) string { return q.ID }), err
	}
	if core.New(core.Kind(kind)) == nil {
		return nil, errs.New(errs.Invalid, "%s is not a kind of resource", kind)
	}
	sn, err := s.snap(ctx, p.Tenant)
	if err != nil {
		return nil, err
	}
	leases, err := s.opts.Fleet.Leases(ctx, p.Tenant)
	if err != nil {
		return nil, err
	}
	holds := links(sn.all, leases)
	var lives map[string][]core.Transition
	if kind == string(core.KindGateway) {
		lives, err = s.opts.Fleet.History(ctx, store.TransitionFilter{Tenant: p.Tenant, Of: core.TransitionOfGateway})
		if err != nil {
			return nil, err
		}
	}
	var out []View
	for _, r := range sn.all {
		if string(r.Spec.Kind()) == kind {
			out = append(out, View{Kind: kind, Name: r.Spec.ResourceName(), Object: r.Spec, Status: s.status(r, sn, holds, lives[r.UID])})
		}
	}
	if kind == string(core.KindNATGateway) {
		natViews(out, sn.all, p.Tenant, s.opts.Fleet.Hosts())
	}
	return out, nil
}

func viewsOf[T any](kind string, items []T, name func(T) string) []View {
	out := make([]View, len(items))
	for i, item := range items {
		out[i] = View{Kind: kind, Name: name(item), Object: item}
	}
	return out
}

// Get implements Frontend.
func (s *Service) Get(ctx context.Context, kind, name string) (View, error) {
	switch kind {
	case KindQuery:
		q, err := s.QueryRecord(ctx, name)
		return View{Kind: kind, Name: name, Object: q}, err
	case KindAudit:
		return s.auditRecord(ctx, name)
	case KindLease:
		return s.leaseRecord(ctx, name)
	}
	all, err := s.List(ctx, kind)
	if err != nil {
		return View{}, err
	}
	for _, v := range all {
		if v.Name == name {
			return s.withMemberHistory(ctx, v)
		}
	}
	return View{}, errs.New(errs.NotFound, "%s/%s does not exist", kind, name).On(kind+"/"+name, "")
}

// withMemberHistory adds to a gateway's view what became of its members.
func (s *Service) withMemberHistory(ctx context.Context, v View) (View, error) {
	status, ok := v.Status.(GatewayStatus)
	if !ok {
		return v, nil
	}
	p, err := caller(ctx)
	if err != nil {
		return View{}, err
	}
	lives, err := s.opts.Fleet.History(ctx, store.TransitionFilter{Tenant: p.Tenant, Of: core.TransitionOfMember, GatewayUID: status.UID})
	status.MemberHistory = newestChanges(lives)
	v.Status = status
	return v, err
}

// mostChanges is how many changes of members a gateway shows.
const mostChanges = 20

// newestChanges merges histories, each of which has its newest first.
func newestChanges(lives map[string][]core.Transition) (out []MemberChange) {
	for id, changes := range lives {
		for _, c := range changes {
			out = append(out, MemberChange{id, c})
		}
	}
	slices.SortStableFunc(out, func(a, b MemberChange) int {
		return cmp.Or(b.At.Compare(a.At), cmp.Compare(a.Member, b.Member))
	})
	return out[:min(len(out), mostChanges)]
}

func (s *Service) leaseRecord(ctx context.Context, name string) (View, error) {
	p, err := caller(ctx)
	if err != nil {
		return View{}, err
	}
	leases, err := s.opts.Fleet.Leases(ctx, p.Tenant)
	if err != nil {
		return View{}, err
	}
	l, err := findLease(leases, name)
	return View{Kind: KindLease, Name: name, Object: l}, err
}

// hosts merges what is stored of each host with what its connection says now.
func (s *Service) hosts(ctx context.Context) ([]core.Host, error) {
	var out []core.Host
	err := s.opts.Store.Read(ctx, func(tx store.Tx) (err error) {
		out, err = tx.ListHosts()
		return err
	})
	connected := map[string]core.Host{}
	for _, h := range s.opts.Fleet.Hosts() {
		connected[h.Name] = h
	}
	for i, h := range out {
		now, ok := connected[h.Name]
		out[i].Connected = ok
		if ok {
			out[i].LastSeen, out[i].SeenVersion, out[i].Problems, out[i].Load, out[i].Image = now.LastSeen, now.SeenVersion, now.Problems, now.Load, now.Image
		}
	}
	return out, err
}

func (s *Service) status(r core.Stored, sn *snapshot, holds []Link, history []core.Transition) any {
	base := ResourceStatus{UID: r.UID, Version: r.Version, Updated: r.UpdatedAt.UTC().Format("2006-01-02T15:04:05Z07:00")}
	switch spec := r.Spec.(type) {
	case *core.Gateway:
		return s.gatewayStatus(r, base, history)
	case *core.DataSource:
		return s.sourceStatus(r.UID, base)
	case *core.VirtualNetwork:
		return vnetStatus(spec, base, holds, peeringStatus(r, spec, sn, s.opts.Fleet.Members(r.Tenant)))
	}
	return base
}

func (s *Service) gatewayStatus(r core.Stored, base ResourceStatus, history []core.Transition) GatewayStatus {
	life := s.opts.Fleet.Life(r.UID)
	out := GatewayStatus{ResourceStatus: base, State: life.State, Since: life.Since, Reason: life.Reason, Problem: life.Problem, History: history, Classes: s.opts.Fleet.Demand(r.UID)}
	inflight := s.opts.Fleet.InFlight(r.UID)
	for _, m := range s.opts.Fleet.Members(r.Tenant) {
		if m.GatewayUID != r.UID {
			continue
		}
		out.Members = append(out.Members, MemberStatus{
			ID: m.ID, State: m.State, Address: addressText(m.Address), Host: m.Host, InFlight: inflight[m.ID], Image: m.Image, Reason: m.Reason,
		})
	}
	return out
}

// memberViews are the members of a tenant, each with its changes of state.
func (s *Service) memberViews(ctx context.Context, t core.TenantID) ([]View, error) {
	lives, err := s.opts.Fleet.History(ctx, store.TransitionFilter{Tenant: t, Of: core.TransitionOfMember})
	out := viewsOf(KindMember, s.opts.Fleet.Members(t), func(m core.Member) string { return m.ID })
	for i, v := range out {
		out[i].Status = MemberHistory{lives[v.Name]}
	}
	return out, err
}

func vnetStatus(v *core.VirtualNetwork, base ResourceStatus, holds []Link, peerings []PeeringStatus) VNetStatus {
	out := VNetStatus{ResourceStatus: base, Peerings: peerings}
	for _, sub := range v.Subnets {
		out.Subnets = append(out.Subnets, subnetStatus(v, sub, holds))
	}
	return out
}

// addressText is empty for a member that waits for an address.
func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
