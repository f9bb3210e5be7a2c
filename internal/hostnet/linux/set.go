package linux

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/flowlog"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// round is one Set: what is wanted, sorted by virtual network.
type round struct {
	goals    map[string]core.GoalVNet // by UID
	ports    map[string]map[hostnet.PortKey]hostnet.Port
	prepared map[hostnet.PortKey]string
	requests map[string]map[hostnet.PortKey]hostnet.Port // ports without an address
	problems []hostnet.Problem
}

// Set implements hostnet.Network.
func (n *Network) Set(ctx context.Context, cfg hostnet.Config) (hostnet.Status, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tunnel == nil {
		return hostnet.Status{}, errNotUp()
	}
	if err := ctx.Err(); err != nil {
		return hostnet.Status{}, errs.As(err)
	}
	r := n.sort(cfg)
	r.problems = append(r.problems, n.returnUplinks(ctx, r.goals)...)
	n.dropUnwanted(r)
	n.keepTunnel(ctx, r)
	n.planNATs(ctx, r)
	if err := n.restrict(ctx, r); err != nil {
		n.tunnel.checked = time.Time{} // asserted at the next Set
		r.refuse("tunnel", machineError("applying the rules that name PlatformTunnel", err))
	}
	var work sync.WaitGroup
	for uid, goal := range r.goals {
		v := n.vnets[uid]
		work.Go(func() { v.set(ctx, goal) })
	}
	work.Wait()
	n.connectPeers(ctx)
	if err := n.answerPublic(!n.swept); err != nil {
		r.refuse("host", machineError("answering ARP for the public addresses of NAT gateways", err))
	}
	if !n.swept {
		if err := errors.Join(n.sweep(), n.sweepConnections(), flowlog.Prune(n.opts.FlowLogDir, time.Now())); err != nil {
			r.problems = append(r.problems, hostnet.Problem{Object: "host", Err: fmt.Errorf("removing what is left over: %w", err)})
		} else {
			n.swept = true
		}
	}
	n.unuseHost()
	return n.status(r), ctx.Err()
}

// sort checks what would make two objects one, and refuses the later.
func (n *Network) sort(cfg hostnet.Config) *round {
	r := &round{
		goals: map[string]core.GoalVNet{}, ports: map[string]map[hostnet.PortKey]hostnet.Port{},
		requests: map[string]map[hostnet.PortKey]hostnet.Port{}, prepared: cfg.Prepared,
	}
	names, addresses := map[string]string{}, map[leasedAddress]string{}
	for _, g := range cfg.VNets {
		name := n.names.vnet(g.UID)
		if other, ok := names[name]; ok {
			r.refuse("VirtualNetwork/"+g.Name, errs.New(errs.Conflict, "its UID %s has the same name on the host as %s", g.UID, other))
			continue
		}
		names[name], r.goals[g.UID] = g.UID, g
	}
	tunnels := map[netip.Addr]string{}
	for _, p := range cfg.Ports {
		if err := r.checkPort(p, tunnels, addresses); err != nil {
			r.refuse("member "+p.Member, err)
			continue
		}
		tunnels[p.TunnelAddress], addresses[leasedAddress{p.VNetUID, p.Address}] = p.Member, p.Member
		into := r.ports
		if !p.Address.IsValid() {
			into = r.requests
		}
		if into[p.VNetUID] == nil {
			into[p.VNetUID] = map[hostnet.PortKey]hostnet.Port{}
		}
		into[p.VNetUID][p.Key()] = p
	}
	return r
}

func (r *round) refuse(object string, err error) {
	r.problems = append(r.problems, hostnet.Problem{Object: object, Err: err})
}

// leasedAddress is an address in a virtual network.
type leasedAddress struct {
	vnet string
	netip.Addr
}

func (r *round) checkPort(p hostnet.Port, tunnels map[netip.Addr]string, addresses map[leasedAddress]string) error {
	goal, ok := r.goals[p.VNetUID]
	if !ok {
		return errs.New(errs.NotFound, "its virtual network %s is not on this host", p.VNetUID)
	}
	s, ok := subnetOf(goal, p.Subnet)
	if !ok {
		return errs.New(errs.NotFound, "the virtual network %s has no subnet %q", goal.Name, p.Subnet)
	}
	if !p.Address.IsValid() {
		if _, ok := dhcpUplink(goal, s.Name); !ok {
			return errs.New(errs.NotFound, "it has no address, and no uplink of this host leases those of subnet %s", s.Name)
		}
		return nil
	}
	if !s.Prefix.Contains(p.Address) {
		return errs.New(errs.Invalid, "the address %s is not in subnet %s (%s)", p.Address, s.Name, s.Prefix)
	}
	if !p.Address.Is4() || !linkLocal.Contains(p.TunnelAddress) || p.TunnelAddress == relayAddress {
		return errs.New(errs.Invalid, "address %s or tunnel address %s can't be used", p.Address, p.TunnelAddress)
	}
	if other, ok := tunnels[p.TunnelAddress]; ok {
		return errs.New(errs.Conflict, "the tunnel address %s is that of member %s", p.TunnelAddress, other)
	}
	if other, ok := addresses[leasedAddress{p.VNetUID, p.Address}]; ok {
		return errs.New(errs.Conflict, "the address %s is leased to member %s", p.Address, other)
	}
	return nil
}

// dropUnwanted begins every removal before anything is made, so that an address which
// moves from one port to another is free.
func (n *Network) dropUnwanted(r *round) {
	for uid, v := range n.vnets {
		for k, p := range v.ports {
			if want, ok := r.ports[uid][k]; !ok || want != p.spec {
				n.dropPort(v, p)
				delete(v.ports, k)
				v.stale = true
			}
		}
		if _, ok := r.goals[uid]; !ok {
			n.dropVNet(v)
			delete(n.vnets, uid)
		}
	}
	for uid := range r.goals {
		v := n.vnets[uid]
		if v == nil {
			v = n.newVNet()
			n.vnets[uid] = v
		}
		v.requests = r.requests[uid]
		for k, p := range r.ports[uid] {
			if v.ports[k] == nil {
				v.ports[k] = &port{spec: p}
				v.stale = true
			}
			v.ports[k].prepared = r.prepared[k]
		}
	}
}

// dropVNet ends what answers in V at once and the rest in the background.
func (n *Network) dropVNet(v *vnet) {
	v.closeFlows(true)
	for _, e := range v.endpoints {
		e.remove()
	}
	v.silence()
	for _, g := range v.nats {
		n.dropNAT(v, g)
	}
	clear(v.nats)
	name := n.names.vnet(v.goal.UID)
	n.reaper.later(vnetJob(v.goal.UID), func() {
		if !n.holdsLent(name) { // what can't be given back now is tried again
			n.warn("removing a virtual network", dropName(name))
		}
		v.close()
	})
}

func (n *Network) keepTunnel(ctx context.Context, r *round) {
	if !n.due(n.tunnel.checked) {
		return
	}
	if err := n.tunnel.assert(ctx); err != nil {
		r.refuse("tunnel", machineError("keeping the tunnel's namespace", err))
		return
	}
	n.tunnel.checked, n.swept = time.Now(), false
}

// planNATs decides what each NAT gateway leaves as, and prepares the host's
// namespace for it.
func (n *Network) planNATs(ctx context.Context, r *round) {
	taken, links := map[netip.Addr]bool{}, n.bridgePorts(r)
	var all []*natGateway
	for _, uid := range sortedKeys(r.goals) {
		v, goal := n.vnets[uid], r.goals[uid]
		plans := map[string]*natGateway{}
		v.refused = map[string]natRefusal{}
		for _, g := range goal.NATGateways {
			link := n.names.natHostLink(g.UID)
			plan, err := n.planNAT(goal, g, v.nats[g.UID], taken)
			if other, twice := links[link]; twice && err == nil {
				err = errs.New(errs.Conflict, "its interface on the host would have the name of that of %s, %s", other, link).
					WithHint("delete it and make it again: the name comes from its UID, which is then another")
			}
			links[link] = "NATGateway/" + g.Name
			if err != nil {
				r.refuse("NATGateway/"+g.Name, err)
				v.refused[g.UID] = natRefusal{g.Name, err}
			} else if plan.used() {
				plans[g.UID] = plan
				all = append(all, plan)
			}
		}
		n.replaceNATs(v, plans)
	}
	if err := n.setHostSide(ctx, all, !n.swept); err != nil {
		r.refuse("host", machineError("preparing the host for NAT gateways", err))
	}
}

// bridgePorts lists whose the names of interfaces are that uplinks make on the host.
func (n *Network) bridgePorts(r *round) map[string]string {
	out := map[string]string{}
	for uid, goal := range r.goals {
		for _, u := range goal.Uplinks {
			if u.Here && u.Bridge != "" {
				out[n.names.bridgePort(uid, u.Name)] = "uplink " + u.Name + " of VirtualNetwork/" + goal.Name
			}
		}
	}
	return out
}

// replaceNATs keeps the NAT gateways that are as planned.
func (n *Network) replaceNATs(v *vnet, plans map[string]*natGateway) {
	for uid, old := range v.nats {
		if plans[uid] == nil {
			n.dropNAT(v, old)
			v.stale, v.ready = true, false
		}
	}
	for uid, plan := range plans {
		if old := v.nats[uid]; old == nil || !old.same(plan) {
			plan.ready = false
			v.stale, v.ready = true, false
		}
	}
	v.nats = plans
}

func (g *natGateway) same(o *natGateway) bool {
	return reflect.DeepEqual(g.goal, o.goal) && slices.Equal(g.prefs, o.prefs) &&
		g.transit == o.transit && slices.Equal(g.public, o.public)
}

// sweep removes what an earlier process left and nobody wants any more.
func (n *Network) sweep() error {
	keep := map[string]bool{n.names.tunnel(): true}
	n.prepared.keep(keep, n.names)
	hostLinks := map[string]bool{}
	var ports []hostnet.Port
	for uid, v := range n.vnets {
		keep[n.names.vnet(uid)] = true
		for nat := range v.nats {
			keep[n.names.nat(nat)], hostLinks[n.names.natHostLink(nat)] = true, true
		}
		for name := range v.uplinks {
			hostLinks[n.names.bridgePort(uid, name)] = true
		}
		for k, p := range v.ports {
			keep[n.names.member(k)] = true
			ports = append(ports, p.spec)
		}
	}
	found, err := namespaces(n.names.prefix())
	if err != nil {
		return err
	}
	for _, name := range found {
		if !keep[name] && !n.leaving(name) && !n.holdsLent(name) {
			n.log.Info("removing a namespace that nothing wants", "namespace", name)
			if err := dropName(name); err != nil {
				return err
			}
		}
	}
	if err := n.tunnel.prune(ports, n); err != nil {
		return err
	}
	_, err = n.host.dropLinks(func(name string) bool { return !n.isHostLink(name) || hostLinks[name] })
	return err
}

// leaving says that a member's namespace is being removed already.
func (n *Network) leaving(name string) bool {
	digest, ok := strings.CutPrefix(name, n.names.prefix()+"m-")
	return ok && n.reaper.busy(portJob(digest)) || n.reaper.busy(preparedJob(name))
}

func (n *Network) status(r *round) hostnet.Status {
	s := hostnet.Status{Ports: map[hostnet.PortKey]string{}, Leased: map[hostnet.PortKey]hostnet.Leased{}, Problems: r.problems}
	for _, uid := range sortedKeys(n.vnets) {
		v := n.vnets[uid]
		s.Problems = append(s.Problems, v.problems...)
		v.leases(&s)
		for _, name := range sortedKeys(v.uplinks) {
			u := v.uplinks[name]
			s.Problems = append(s.Problems, u.claims.problems(v, u)...)
		}
		for k, p := range v.ports {
			switch {
			case p.ready:
				s.Ports[k] = p.at.path
			case p.err != nil:
				s.Problems = append(s.Problems, hostnet.Problem{
					Object: "member " + k.Member, Err: machineError("making the interfaces of member "+k.Member, p.err),
				})
			default:
				s.Problems = append(s.Problems, hostnet.Problem{
					Object: "member " + k.Member, Err: errs.New(errs.Unavailable, "its virtual network %s could not be made", v.goal.Name),
				})
			}
		}
	}
	return s
}
