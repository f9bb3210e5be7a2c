package linux

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/policy"
	"golang.org/x/sys/unix"
)

// natGateway is the namespace N of a NAT gateway.
type natGateway struct {
	goal    core.GoalNATGateway
	prefs   []netip.Prefix // of the subnets that name it
	transit netip.Addr     // valid if it leaves as the host
	public  []netip.Addr

	at      *space
	rules   *ruleset
	meter   *natMeter
	ready   bool
	err     error // why it is not ready
	checked time.Time
}

// maxPublic bounds the addresses of one NAT gateway.
const maxPublic = 16

// sources are the addresses that leave N.
func (g *natGateway) sources() []netip.Addr {
	if !g.transit.IsValid() {
		return g.public
	}
	return append([]netip.Addr{g.transit}, g.public...)
}

// planNAT reads what a NAT gateway leaves as.
func (n *Network) planNAT(v core.GoalVNet, goal core.GoalNATGateway, old *natGateway, taken map[netip.Addr]bool) (*natGateway, error) {
	g := &natGateway{goal: goal}
	g.goal.PublicAddresses = slices.Clone(goal.PublicAddresses)
	if old != nil {
		g.at, g.rules, g.meter, g.transit = old.at, old.rules, old.meter, old.transit
		g.ready, g.err, g.checked = old.ready, old.err, old.checked
	}
	for _, s := range v.Subnets {
		if s.NATGateway == goal.Name {
			g.prefs = append(g.prefs, s.Prefix.Masked())
		}
	}
	asHost := false
	for _, text := range goal.PublicAddresses {
		if text == "host" {
			asHost = true
			continue
		}
		list, err := publicAddresses(text)
		if err != nil {
			return nil, err
		}
		g.public = append(g.public, list...)
	}
	if err := n.hostSide.lacks(g.public); err != nil {
		return nil, err
	}
	if len(g.public) > maxPublic {
		return nil, errs.New(errs.Invalid, "a NAT gateway has at most %d addresses, not %d", maxPublic, len(g.public))
	}
	if !asHost {
		g.transit = netip.Addr{}
	} else if !g.transit.IsValid() {
		var err error
		if g.transit, err = n.transitOf(goal.UID, taken); err != nil {
			return nil, err
		}
	}
	for _, a := range g.sources() {
		if taken[a] {
			return nil, errs.New(errs.Conflict, "the address %s belongs to another NAT gateway", a)
		}
		taken[a] = true
	}
	return g, nil
}

// publicAddresses reads an address or a prefix.
func publicAddresses(text string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Is4() {
		return []netip.Addr{a}, nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || !p.Addr().Is4() || p.Bits() < 28 {
		return nil, errs.New(errs.Invalid, "%q is neither \"host\" nor an IPv4 address nor a prefix of /28 or longer", text)
	}
	var out []netip.Addr
	for i := range uint32(1) << (32 - p.Bits()) {
		out = append(out, nth(p, i))
	}
	return out, nil
}

// transitOf finds the address that an earlier process gave the gateway, or picks one:
// established flows depend on it.
func (n *Network) transitOf(uid string, taken map[netip.Addr]bool) (netip.Addr, error) {
	if at, err := openSpace(n.names.nat(uid)); err == nil {
		defer at.close()
		if l, err := at.links(); err == nil {
			if have, err := at.read(l, func(name string) bool { return name == outsideName }); err == nil {
				for _, a := range have.addrs {
					if transitSpace.Contains(a.ip) && !taken[a.ip] {
						return a.ip, nil
					}
				}
			}
		}
	}
	return n.hostSide.pickTransit(n.names.instance+uid, taken)
}

// natTimers are the conntrack timers of a NAT gateway (semantics of the cloud: idle as
// declared; a port rests 65 s after FIN, 16 s after RST, 30 s half-open). A connection
// that one end closed and the other still uses idles like any other, and neither data that
// nobody acknowledges nor retransmissions shorten its time.
func natTimers(idle time.Duration) []sysctl {
	if idle <= 0 {
		idle = defaultIdle
	}
	tcp := int(idle.Seconds())
	seconds := map[string]int{
		"tcp_timeout_established": tcp, "tcp_timeout_unacknowledged": tcp, "tcp_timeout_max_retrans": tcp, "tcp_timeout_close_wait": tcp,
		"tcp_timeout_syn_sent": 30, "tcp_timeout_syn_recv": 30,
		"tcp_timeout_fin_wait": 65, "tcp_timeout_last_ack": 65, "tcp_timeout_time_wait": 65,
		"tcp_timeout_close": 16, "udp_timeout": udpIdle, "udp_timeout_stream": udpIdle,
		"tcp_loose": 0, "tcp_be_liberal": 1,
	}
	var out []sysctl
	for _, name := range sortedKeys(seconds) {
		out = append(out, sysctl{"netfilter/nf_conntrack_" + name, strconv.Itoa(seconds[name]), true})
	}
	return out
}

// defaultIdle is the idle time-out of TCP where a NAT gateway names none.
const defaultIdle = 4 * time.Minute

// udpIdle is the idle time-out of UDP, in seconds.
const udpIdle = 240

// ensureNAT makes N, its two veths and the rules in it.
func (n *Network) ensureNAT(ctx context.Context, v *vnet, g *natGateway) (err error) {
	uid, why := g.goal.UID, fmt.Sprintf("NATGateway %s of VirtualNetwork %s", shorten(g.goal.Name, 80), shorten(v.goal.Name, 80))
	n.reaper.settle(natJob(uid))
	if err := n.openNAT(g, why); err != nil {
		return err
	}
	if err := g.meter.ensure(ctx, g.rules); err != nil {
		return err
	}
	text, err := policy.CompileNAT(policy.NATInput{
		Inside: insideName, Outside: outsideName, SNAT: g.sources(), InsidePrefixes: g.prefs, MemberFlows: n.natFlows(),
	})
	if err != nil {
		return err
	}
	if !g.rules.holds(text) {
		if err := g.rules.apply(ctx, text); err != nil {
			return err
		}
	}
	if err := g.at.do(func() error { return writeAll(natTimers(time.Duration(g.goal.IdleTimeout))) }); err != nil {
		return err
	}
	macs := n.natMACs(uid)
	link := n.names.natHostLink(uid)
	ends, err := ensurePairs(ctx,
		pair{end{v.at, natInnerLink(uid), macs.vnet, why}, end{g.at, insideName, macs.inside, ""}},
		pair{end{n.host, link, macs.host, why}, end{g.at, outsideName, macs.outside, ""}})
	if err != nil {
		return err
	}
	if err := n.host.joinGroup(ends[2]); err != nil {
		return err
	}
	lo, err := g.at.nl.LinkByName("lo")
	if err != nil {
		return err
	}
	inN := n.insideNAT(g)
	if err := errors.Join(
		g.at.assert(newLinks(ends[1], ends[3], lo), inN),
		v.at.assert(newLinks(ends[0]), n.natInVNet(g)),
		n.host.assert(newLinks(ends[2]), n.natInHost(g)),
		n.host.do(func() error {
			return writeAll([]sysctl{
				{key: "ipv6/conf/" + link + "/disable_ipv6", value: "1", optional: true},
				{key: forwardingKey(link), value: "1"},
			})
		}),
	); err != nil {
		return err
	}
	return n.pruneNAT(g, inN)
}

// natFlows bounds the flows of one member in a NAT gateway, so that it takes eight at the
// least to fill the connection tracking, which is the same for all members.
func (n *Network) natFlows() int {
	if n.opts.MaxNATFlowsPerMember > 0 {
		return n.opts.MaxNATFlowsPerMember
	}
	text, err := readSysctl(trackingMaxKey)
	if tracked, numErr := strconv.Atoi(text); err == nil && numErr == nil && tracked > 0 {
		return min(policy.MaxMemberFlows, max(tracked/8, 1))
	}
	return policy.MaxMemberFlows
}

func (n *Network) openNAT(g *natGateway, why string) (err error) {
	if g.at != nil {
		return g.at.keepName()
	}
	if g.at, _, err = ensureSpace(n.names.nat(g.goal.UID), why, quiet("1")); err != nil {
		return err
	}
	if g.rules, err = newRuleset(g.at); err != nil {
		return err
	}
	g.meter, err = newNATMeter(g.at)
	return err
}

func (n *Network) pruneNAT(g *natGateway, want state) error {
	l, err := g.at.links()
	if err != nil {
		return err
	}
	all := func(string) bool { return true }
	have, err := g.at.read(l, all)
	if err != nil {
		return err
	}
	if err := g.at.prune(l, want, all); err != nil {
		return err
	}
	if len(beyond(have.addrs, want.addrs)) > 0 { // with an interface's last address go its routes and neighbours
		if err := g.at.assert(l, want); err != nil {
			return err
		}
	}
	if l, err = n.host.links(); err != nil {
		return err
	}
	link := n.names.natHostLink(g.goal.UID)
	return n.host.prune(l, n.natInHost(g), func(name string) bool { return name == link })
}

type natMACs struct{ vnet, inside, outside, host []byte }

func (n *Network) natMACs(uid string) natMACs {
	of := func(end string) []byte { return n.names.mac("nat", uid, end) }
	return natMACs{of("vnet"), of("inside"), of("outside"), of("host")}
}

// insideNAT is what N holds. The public addresses are its own, so that what nobody
// asked for ends here instead of going round between N and the host.
func (n *Network) insideNAT(g *natGateway) state {
	macs := n.natMACs(g.goal.UID)
	s := state{
		neighs: []neighbour{{insideName, hopDown, macText(macs.vnet)}, {outsideName, hopUp, macText(macs.host)}},
		routes: []route{
			{table: unix.RT_TABLE_MAIN, dst: everywhere, link: outsideName, via: hopUp},
			{table: unix.RT_TABLE_MAIN, dst: linkLocal},
		},
	}
	if g.transit.IsValid() {
		s.addrs = append(s.addrs, address{outsideName, g.transit})
	}
	for _, a := range g.public {
		s.addrs = append(s.addrs, address{"lo", a})
	}
	for _, p := range g.prefs {
		s.routes = append(s.routes, route{table: unix.RT_TABLE_MAIN, dst: p, link: insideName, via: hopDown})
	}
	return s
}

// natInVNet is what V holds: a table with the way out, and who takes it. The rules
// come after the main table, which answers for every address of the virtual network.
func (n *Network) natInVNet(g *natGateway) state {
	link, table := natInnerLink(g.goal.UID), natTable(g.goal.UID)
	s := state{
		neighs: []neighbour{{link, hopUp, macText(n.natMACs(g.goal.UID).inside)}},
		routes: []route{{table: table, dst: everywhere, link: link, via: hopUp}},
	}
	for _, p := range g.prefs {
		s.rules = append(s.rules, rule{priority: ruleBase, from: p, table: table})
	}
	return s
}

func (n *Network) natInHost(g *natGateway) state {
	link, mac := n.names.natHostLink(g.goal.UID), macText(n.natMACs(g.goal.UID).outside)
	var s state
	for _, a := range g.sources() {
		s.neighs = append(s.neighs, neighbour{link, a, mac})
		s.routes = append(s.routes, route{table: unix.RT_TABLE_MAIN, dst: single(a), link: link})
	}
	return s
}

func natTable(uid string) int {
	v, err := strconv.ParseUint(digest(7, uid), 16, 31)
	if err != nil {
		panic(err) // seven hex digits are a number
	}
	return 1<<28 | int(v)
}

// natJob names a removal by the interface in V, where prune meets it.
func natJob(uid string) string { return natLinkJob(natInnerLink(uid)) }

func natLinkJob(link string) string { return "nat " + link }

// dropNAT removes a NAT gateway in the background.
func (n *Network) dropNAT(v *vnet, g *natGateway) {
	uid, vAt, host := g.goal.UID, v.at, n.host
	n.reaper.later(natJob(uid), func() {
		n.warn("removing a NAT gateway", host.removeLink(n.names.natHostLink(uid)))
		if vAt != nil {
			n.warn("removing a NAT gateway", vAt.removeLink(natInnerLink(uid)))
		}
		n.warn("removing a NAT gateway", dropName(n.names.nat(uid)))
		g.close()
	})
}

func (g *natGateway) close() {
	if g.meter != nil {
		g.meter.close()
	}
	if g.rules != nil {
		g.rules.close()
	}
	if g.at != nil {
		g.at.close()
	}
}

// used says that some subnet leaves through the gateway; without one it is not made.
func (g *natGateway) used() bool { return len(g.prefs) > 0 }

func macText(b []byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5])
}
