package linux

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/policy"
	"github.com/sluice-gateway/sluice/internal/resolver"
	"golang.org/x/sys/unix"
)

// portsAtOnce bounds how many ports of a virtual network are made at the same time:
// the kernel's own lock lets more gain nothing.
const portsAtOnce = 4

// looksAtOnce bounds how many ports that were complete one Set looks at again, so that a
// port which is waited for never waits for a look at thousands.
const looksAtOnce = 64

// vnet is the namespace V of a virtual network, and what answers in it.
type vnet struct {
	n    *Network
	goal core.GoalVNet

	at        *space
	rules     *ruleset
	resolver  *resolver.Resolver
	dns       map[netip.Addr]*dnsServer
	endpoints map[string]*endpoint // by UID
	nats      map[string]*natGateway
	refused   map[string]natRefusal // NAT gateways that can't be planned
	ports     map[hostnet.PortKey]*port
	requests  map[hostnet.PortKey]hostnet.Port // members that wait for an address by DHCP
	connected map[string]time.Time             // peers, by UID: when they were last looked at
	flows     flowLog
	uplinks   map[string]*uplink // by name, those of this host

	ready    bool      // built, nothing failed
	checked  time.Time // when it was last built
	text     string    // the rules that belong to goal, ports and nats
	stale    bool      // text must be compiled anew
	revoking bool      // rules changed, and flows that they deny may have to be cut
	problems []hostnet.Problem
}

func (n *Network) newVNet() *vnet {
	return &vnet{
		n: n, dns: map[netip.Addr]*dnsServer{}, endpoints: map[string]*endpoint{},
		nats: map[string]*natGateway{}, ports: map[hostnet.PortKey]*port{}, uplinks: map[string]*uplink{}, stale: true,
	}
}

func vnetJob(uid string) string { return "vnet " + uid }

func subnetOf(g core.GoalVNet, name string) (core.Subnet, bool) {
	i := slices.IndexFunc(g.Subnets, func(s core.Subnet) bool { return s.Name == name })
	if i < 0 {
		return core.Subnet{}, false
	}
	return g.Subnets[i], true
}

// problem remembers what could not be made; the object is tried again at each Set.
func (v *vnet) problem(object string, err error) {
	if err != nil {
		v.problems = append(v.problems, hostnet.Problem{Object: object, Err: err})
	}
}

func (v *vnet) object() string { return string(core.KindVirtualNetwork) + "/" + v.goal.Name }

// set makes the virtual network and its ports equal to the goal and to v.ports. What is left
// over is looked for when all of the network is: a port that goes takes its own things along.
func (v *vnet) set(ctx context.Context, goal core.GoalVNet) {
	prune := false
	if !reflect.DeepEqual(rulesOf(v.goal), rulesOf(goal)) {
		v.revoking = true
	}
	if !v.ready || v.n.due(v.checked) || !reflect.DeepEqual(withoutRules(v.goal), withoutRules(goal)) {
		v.goal, v.problems, v.stale, prune = cloneVNet(goal), nil, true, true
		if err := v.build(ctx); err != nil {
			v.problem(v.object(), machineError("making virtual network "+v.goal.Name, err))
			v.ready = false
			return
		}
		v.ready, v.checked = len(v.problems) == 0, time.Now()
	} else if v.revoking {
		v.goal, v.stale = cloneVNet(goal), true
	}
	v.finish(ctx)
	v.routeToAppliances()
	if prune {
		if err := v.prune(); err != nil {
			v.problem(v.object(), fmt.Errorf("removing what is left over: %w", err))
			v.ready = false
		}
	}
}

// build makes all but the ports and the rules.
func (v *vnet) build(ctx context.Context) (err error) {
	n := v.n
	if v.at == nil {
		n.reaper.settle(vnetJob(v.goal.UID))
		why := fmt.Sprintf("VirtualNetwork %s", shorten(v.goal.Name, 160))
		if v.at, _, err = ensureSpace(n.names.vnet(v.goal.UID), why, quiet("1")); err != nil {
			return err
		}
	}
	if v.rules == nil {
		if v.rules, err = newRuleset(v.at); err != nil {
			return err
		}
	}
	if err := v.at.keepName(); err != nil {
		return err
	}
	l, err := v.at.links()
	if err != nil {
		return err
	}
	if err := v.at.assert(l, v.base()); err != nil {
		return err
	}
	v.answer()
	v.buildNATs(ctx)
	return v.buildRoutes()
}

// base is what V holds without ports and NAT gateways: the addresses that answer in
// it, and an end for packets to addresses of its own that nobody has.
func (v *vnet) base() state {
	var s state
	for _, p := range append([]netip.Prefix{linkLocal}, v.goal.AddressSpace...) {
		s.routes = append(s.routes, route{table: unix.RT_TABLE_MAIN, dst: p.Masked()})
	}
	for _, sub := range v.goal.Subnets {
		for _, a := range resolverAddresses(sub.Prefix) {
			s.addrs = append(s.addrs, address{"lo", a})
		}
	}
	for _, e := range v.goal.Endpoints {
		s.addrs = append(s.addrs, address{"lo", e.Address})
	}
	return s
}

// buildNATs keeps going when one NAT gateway fails: its subnets have no way out then.
func (v *vnet) buildNATs(ctx context.Context) {
	for _, uid := range sortedKeys(v.nats) {
		g := v.nats[uid]
		if g.ready && !v.n.due(g.checked) {
			continue
		}
		err := v.n.ensureNAT(ctx, v, g)
		g.ready, g.err, g.checked = err == nil, err, time.Now()
		if err != nil {
			v.problem(string(core.KindNATGateway)+"/"+g.goal.Name, machineError("making NAT gateway "+g.goal.Name, err))
		}
	}
}

// answer opens and closes listeners so that they are those of the goal.
func (v *vnet) answer() {
	v.answerDNS()
	wanted := map[string]bool{}
	for _, g := range v.goal.Endpoints {
		wanted[g.UID] = true
		e := v.endpoints[g.UID]
		if e != nil && e.addr == netip.AddrPortFrom(g.Address, g.Port) {
			e.target.Store(&g.Target)
			continue
		}
		if e != nil {
			e.remove()
			delete(v.endpoints, g.UID)
		}
		e, err := v.n.openEndpoint(v.at, g)
		if err != nil {
			v.problem(string(core.KindPrivateEndpoint)+"/"+g.Name, machineError("listening for private endpoint "+g.Name, err))
			continue
		}
		v.endpoints[g.UID] = e
	}
	for uid, e := range v.endpoints {
		if !wanted[uid] {
			e.remove()
			delete(v.endpoints, uid)
		}
	}
}

func (v *vnet) answerDNS() {
	config := v.n.resolverConfig(v.goal)
	if v.resolver == nil {
		v.resolver = resolver.New(resolver.Options{Config: config, Dial: v.dialDNS(v.at)})
	}
	v.resolver.Update(config)
	wanted := map[netip.Addr]bool{}
	for _, a := range v.resolvers() {
		wanted[a] = true
		if d := v.dns[a]; d != nil && !d.ended.Load() {
			continue
		} else if d != nil {
			d.shut()
		}
		d, err := v.n.openDNS(v.at, a, v.resolver)
		if err != nil {
			v.problem(v.object(), machineError(fmt.Sprintf("listening for questions to the resolver %s", a), err))
			continue
		}
		v.dns[a] = d
	}
	for a, d := range v.dns {
		if !wanted[a] {
			d.shut()
			delete(v.dns, a)
		}
	}
}

func (v *vnet) resolvers() (out []netip.Addr) {
	for _, s := range v.goal.Subnets {
		out = append(out, resolverAddresses(s.Prefix)...)
	}
	return out
}

// finish applies the rules and, meanwhile, makes the ports that are not complete. A
// port counts as complete only once there are rules that know it.
func (v *vnet) finish(ctx context.Context) {
	var work sync.WaitGroup
	var rules error
	work.Go(func() { rules = v.applyRules(ctx) })
	slots := make(chan struct{}, portsAtOnce)
	looks := 0
	for _, p := range v.ports {
		if p.ready && !v.n.due(p.checked) {
			continue
		}
		if p.ready && v.n.opts.VerifyEvery > 0 {
			if looks++; looks > looksAtOnce {
				v.n.poke() // the others' turn comes at once, after what has changed meanwhile
				break
			}
		}
		work.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			p.err = v.n.ensurePort(ctx, v, p)
			p.ready, p.checked = p.err == nil, time.Now()
		})
	}
	work.Wait()
	v.bind(rules)
	if rules == nil {
		v.setUplinks(ctx)
	}
	if rules == nil && v.revoking {
		err := v.revoke()
		v.problem(v.object(), err)
		v.revoking, v.ready = err != nil, v.ready && err == nil
	}
}

// bind notes which ports the rules know. If new rules are refused, the old ones stay in
// force, and with them the ports that they know.
func (v *vnet) bind(rules error) {
	v.reportFlows()
	if rules != nil {
		v.ready = false
		v.problem(v.object(), errs.New(errs.Internal, "applying the rules of virtual network %s: %w", v.goal.Name, rules))
	}
	for _, p := range v.ports {
		p.bound = p.bound || rules == nil
		if p.ready && !p.bound {
			p.ready, p.err = false, errors.New("its rules could not be applied")
		}
	}
}

func (v *vnet) applyRules(ctx context.Context) error {
	if v.stale {
		v.flows.err = v.logFlows()
		text, err := v.compile()
		if err != nil {
			return err
		}
		v.text, v.stale = text, false
	}
	if v.rules.holds(v.text) {
		return nil
	}
	err := v.rules.apply(ctx, v.text)
	if err == nil {
		err = v.at.do(func() error { return writeAll(strictTracking) })
	}
	if err != nil {
		v.stale = true
	}
	return err
}

func (v *vnet) compile() (string, error) { return policy.CompileVNet(v.input()) }

// input is what the rules are made of.
func (v *vnet) input() policy.VNetInput {
	in := policy.VNetInput{VNet: v.goal, FlowMark: v.flows.mark, BucketsFrom: v.n.opts.BucketsFrom, Resolvers: v.resolvers(), NATInterfaces: map[string]string{}, UplinkInterfaces: v.uplinkInterfaces()}
	for _, p := range v.ports {
		in.Ports = append(in.Ports, policy.PortBinding{
			Interface: portLink(p.spec.Key()), MAC: v.n.names.portMACs(p.spec).eth.String(),
			Address: p.spec.Address, Subnet: p.spec.Subnet,
		})
	}
	in.PeerInterfaces = v.peerInterfaces()
	for uid, g := range v.nats {
		if g.ready {
			in.NATInterfaces[g.goal.Name] = natInnerLink(uid)
		}
	}
	return in
}

// prune removes from V what neither the goal nor a port nor a removal under way knows.
func (v *vnet) prune() error {
	want, keep := v.base(), map[string]bool{"lo": true}
	for k, p := range v.ports {
		want.add(v.n.portInVNet(p.spec))
		keep[portLink(k)] = true
	}
	for uid, g := range v.nats {
		want.add(v.n.natInVNet(g))
		keep[natInnerLink(uid)] = true
	}
	for _, p := range v.goal.Peers {
		want.add(v.n.peerInVNet(v.goal.UID, p))
		keep[peerLink(v.goal.UID, p.UID)] = true
	}
	for _, u := range v.uplinks {
		want.add(v.uplinkState(u))
	}
	l, err := v.at.dropLinks(func(name string) bool {
		return keep[name] || isUplinkLink(name) || v.n.reaper.busy(portJob(name[1:])) || v.leavingNAT(name)
	})
	if err != nil {
		return err
	}
	want.add(v.routing(l))
	return v.at.prune(l, want, func(string) bool { return true })
}

// leavingNAT says that an interface belongs to a NAT gateway that is being removed.
func (v *vnet) leavingNAT(name string) bool {
	return v.n.reaper.busy(natLinkJob(name))
}

// silence ends everything that answers in V.
func (v *vnet) silence() {
	v.closeFlows(false)
	for _, e := range v.endpoints {
		e.shut()
	}
	for _, d := range v.dns {
		d.cancel() // all at once: each waits for the questions that it took
	}
	for _, d := range v.dns {
		d.shut()
	}
	clear(v.endpoints)
	clear(v.dns)
}

// close gives up the handles; the kernel keeps everything.
func (v *vnet) close() {
	for _, u := range v.uplinks {
		u.claims.close()
		if u.leasing != nil {
			u.leasing.pool.Close()
		}
	}
	for _, p := range v.ports {
		if p.at != nil {
			p.at.close()
		}
	}
	for _, g := range v.nats {
		g.close()
	}
	if v.rules != nil {
		v.rules.close()
	}
	if v.at != nil {
		v.at.close()
	}
}

// cloneVNet copies everything that a caller could still change.
func cloneVNet(g core.GoalVNet) core.GoalVNet {
	g.AddressSpace, g.Subnets = slices.Clone(g.AddressSpace), slices.Clone(g.Subnets)
	g.Uplinks = slices.Clone(g.Uplinks)
	for i := range g.Uplinks {
		g.Uplinks[i].Prefixes = slices.Clone(g.Uplinks[i].Prefixes)
	}
	g.NSGs, g.NATGateways = slices.Clone(g.NSGs), slices.Clone(g.NATGateways)
	g.ASGs, g.ServiceTags, g.NICs = slices.Clone(g.ASGs), slices.Clone(g.ServiceTags), slices.Clone(g.NICs)
	for i := range g.ASGs {
		g.ASGs[i].Addresses = slices.Clone(g.ASGs[i].Addresses)
	}
	for i := range g.ServiceTags {
		g.ServiceTags[i].Prefixes = slices.Clone(g.ServiceTags[i].Prefixes)
	}
	g.Endpoints, g.Zones = slices.Clone(g.Endpoints), slices.Clone(g.Zones)
	for i := range g.NSGs {
		rules := slices.Clone(g.NSGs[i].Rules)
		for j := range rules {
			r := &rules[j]
			r.Source, r.SourcePorts = slices.Clone(r.Source), slices.Clone(r.SourcePorts)
			r.Destination, r.DestinationPorts = slices.Clone(r.Destination), slices.Clone(r.DestinationPorts)
		}
		g.NSGs[i].Rules = rules
	}
	for i := range g.NATGateways {
		g.NATGateways[i].PublicAddresses = slices.Clone(g.NATGateways[i].PublicAddresses)
	}
	for i := range g.Zones {
		g.Zones[i].Records = slices.Clone(g.Zones[i].Records)
	}
	g.DNS.Servers = slices.Clone(g.DNS.Servers)
	g.RouteTables, g.Peers = cloneTables(g.RouteTables), clonePeers(g.Peers)
	return g
}
