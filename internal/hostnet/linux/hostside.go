package linux

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// transitSpace is where NAT gateways that leave as the host get an address from. It
// never leaves the machine, and members reach nothing in it.
var transitSpace = netip.MustParsePrefix("100.64.0.0/10")

// hostSide is what the host's own namespace holds for NAT gateways: a table that
// forwards and masquerades what comes from them and lets in nothing new, and
// forwarding on the interfaces that packets leave and return by.
type hostSide struct {
	at    *space
	rules *ruleset
	key   string // of the plan that was carried out
	text  string // of the table
	watch *hostFirewall
	// untimed: this kernel has no time-outs of single flows (CONFIG_NF_CONNTRACK_TIMEOUT).
	untimed bool
	// answered are the public addresses that the host was last made to answer ARP for.
	answered string
}

func (n *Network) openHostSide() (*hostSide, error) {
	at, err := openHost(n.opts.HostNS)
	if err != nil {
		return nil, err
	}
	rules, err := newRuleset(at)
	if err != nil {
		at.close()
		return nil, err
	}
	rules.shared = true
	return &hostSide{at: at, rules: rules}, nil
}

func (h *hostSide) close() {
	if h.watch != nil {
		h.watch.close()
	}
	h.rules.close()
	h.at.close()
}

// hostPlan is what the host's table is made of.
type hostPlan struct {
	table, links string
	gateways     []string     // the NAT gateways' interfaces
	masquerade   []netip.Addr // transit addresses that leave as the host
	sources      []netip.Addr // every address that a NAT gateway may send from
	opened       []string     // interfaces that forward only because of installations
	answering    []string     // interfaces where the host answers ARP for them
	delays       []delay      // of these, those where it did so with a delay
	idle         int          // the longest TCP time-out of a NAT gateway, in seconds; 0: flows keep the host's
}

// text gives the table, or its removal if there is no NAT gateway.
func (p hostPlan) text() string {
	remove := fmt.Sprintf("table ip %s {}\ndelete table ip %s\n", p.table, p.table)
	if len(p.sources) == 0 {
		return remove
	}
	var b strings.Builder
	ours := fmt.Sprintf("%q", p.links+"*")
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	b.WriteString(remove)
	line("table ip %s {", p.table)
	for _, link := range p.gateways {
		for _, name := range []string{countOut, countOutEnd, countIn, countInEnd} {
			line("\tcounter %s%s {\n\t}", name, link)
		}
	}
	p.timeouts(line)
	p.sharedText(line)
	line("\tchain prerouting {\n\t\ttype filter hook prerouting priority raw; policy accept;")
	line("\t\tiifname %s ip saddr != { %s } counter drop comment \"not an address of a NAT gateway\"", ours, join(p.sources))
	line("\t}\n\tchain input {\n\t\ttype filter hook input priority filter - 5; policy accept;")
	line("\t\tiifname %s counter drop comment \"the host itself is out of reach\"", ours)
	line("\t}\n\tchain forward {\n\t\ttype filter hook forward priority filter - 5; policy accept;")
	line("\t\tiifname %s oifname %s counter drop comment \"NAT gateways never meet\"", ours, ours)
	line("\t\tiifname %s ip daddr %s counter drop comment \"link-local\"", ours, linkLocal)
	if p.idle > 0 {
		line("\t\tiifname %s ct state new meta l4proto tcp ct timeout set \"nat_tcp\"", ours)
		line("\t\tiifname %s ct state new meta l4proto udp ct timeout set \"nat_udp\"", ours)
	}
	for _, link := range p.gateways {
		line("\t\tiifname %q counter name %s%s accept", link, countOut, link)
		line("\t\toifname %q ct state established,related counter name %s%s accept", link, countIn, link)
	}
	line("\t\toifname %s counter drop comment \"unsolicited\"", ours)
	line("\t\tiifname @%s oifgroup != %d counter drop comment \"did not forward before\"", openedSet, linkGroup)
	line("\t}\n\tchain forwarded {\n\t\ttype filter hook forward priority 300; policy accept;")
	for _, link := range p.gateways {
		line("\t\tiifname %q counter name %s%s", link, countOutEnd, link)
		line("\t\toifname %q counter name %s%s", link, countInEnd, link)
	}
	line("\t}\n\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;")
	if len(p.masquerade) > 0 {
		line("\t\toifname != %s ip saddr { %s } masquerade", ours, join(p.masquerade))
	}
	line("\t}\n}")
	return b.String()
}

// timeouts keep the host's own connection tracking from forgetting a flow before its NAT
// gateway does, and from keeping one for days that the NAT gateway forgot.
func (p hostPlan) timeouts(line func(format string, args ...any)) {
	if p.idle == 0 {
		return
	}
	const beyondNAT = 30
	tcp := p.idle + beyondNAT
	line("\tct timeout nat_tcp {\n\t\tprotocol tcp\n\t\tl3proto ip")
	line("\t\tpolicy = { syn_sent : %d, syn_recv : %d, established : %d, fin_wait : %d, close_wait : %d, last_ack : %d, time_wait : %d, close : %d, unack : %d, retrans : %d }",
		60, 60, tcp, 95, tcp, 95, 95, 46, tcp, tcp)
	line("\t}\n\tct timeout nat_udp {\n\t\tprotocol udp\n\t\tl3proto ip")
	line("\t\tpolicy = { unreplied : %d, replied : %d }\n\t}", udpIdle+beyondNAT, udpIdle+beyondNAT)
}

func join(list []netip.Addr) string {
	list = slices.Clone(list)
	slices.SortFunc(list, netip.Addr.Compare)
	var out []string
	for _, a := range slices.Compact(list) {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}

// hostJob names the removal of the host's table for the reaper.
const hostJob = "host"

// setHostSide is done before a NAT gateway gets its interface in the host's
// namespace, and undone after the last one lost it, so that none ever stands there
// without its rules. again says to look even if nothing changed.
func (n *Network) setHostSide(ctx context.Context, gateways []*natGateway, again bool) error {
	plan := hostPlan{table: n.names.hostTable(), links: n.names.hostLinks()}
	for _, g := range gateways {
		plan.gateways = append(plan.gateways, n.names.natHostLink(g.goal.UID))
		plan.idle = max(plan.idle, int(time.Duration(g.goal.IdleTimeout).Seconds()), int(defaultIdle.Seconds()))
		plan.sources = append(plan.sources, g.sources()...)
		if g.transit.IsValid() {
			plan.masquerade = append(plan.masquerade, g.transit)
		}
	}
	if len(gateways) == 0 {
		return nil // see unuseHost
	}
	slices.Sort(plan.gateways)
	h := n.hostSide
	if h.untimed {
		plan.idle = 0
	}
	key := plan.text()
	n.reaper.settle(hostJob)
	if !again && h.key == key && h.rules.holds(h.text) {
		return nil
	}
	forward, err := h.uplinks(n.isInstallation)
	if err != nil {
		return fmt.Errorf("finding the interfaces that packets leave by: %w", err)
	}
	near, _, err := n.readHostRoutes(h.at)
	if err != nil {
		return fmt.Errorf("finding the networks of the host's interfaces: %w", err)
	}
	for _, a := range near.answers(plan.sources) {
		plan.answering = append(plan.answering, a.link) // sorted
	}
	plan.answering = slices.Compact(plan.answering)
	err = h.alone(ctx, func() error {
		return h.at.do(func() error { return n.applyHostSide(ctx, plan, forward) })
	})
	if err != nil {
		return err
	}
	h.key = key
	return nil
}

// unuseHost restores the host's namespace after everything that was given to the
// reaper before, if it is the first Set without a NAT gateway.
func (n *Network) unuseHost() {
	h := n.hostSide
	for _, v := range n.vnets {
		if len(v.nats) > 0 {
			return
		}
	}
	if h.key != unused {
		h.key = unused
		n.reaper.later(hostJob, func() { n.warn("restoring the host's namespace", n.leaveHost(n.ctx, h)) })
	}
}

// unused is the key of a host without NAT gateways.
const unused = "-"

// leaveHost restores the sysctl values that no other installation needs, and removes our
// table, which confines what they open, after that.
func (n *Network) leaveHost(ctx context.Context, h *hostSide) error {
	return h.alone(ctx, func() error {
		others, err := h.others(n.names.hostTable())
		if err != nil {
			return err
		}
		return h.at.do(func() error {
			return n.mem.restore(nil, others, func() error {
				tables, err := h.rules.tables()
				if err == nil && slices.Contains(tables, n.names.hostTable()) {
					err = h.rules.apply(ctx, hostPlan{table: n.names.hostTable()}.text())
				}
				return err
			})
		})
	})
}

// applyHostSide runs in a thread of the host's namespace, and alone. The table comes before
// the forwarding that it confines.
func (n *Network) applyHostSide(ctx context.Context, plan hostPlan, forward []string) error {
	others, err := n.hostSide.others(plan.table)
	if err != nil {
		return err
	}
	keep, err := n.planSettings(&plan, forward, others)
	if err != nil {
		return err
	}
	untimed := n.hostSide.untimed
	if err := n.hostSide.apply(ctx, plan); err != nil {
		return err
	}
	if n.hostSide.untimed && !untimed {
		n.log.Warn("the kernel has no time-outs of single flows: the host's own connection tracking may forget a UDP flow before its NAT gateway does")
	}
	for _, key := range sortedKeys(keep) {
		if err := n.mem.set(key, keep[key], others); err != nil {
			return err
		}
	}
	return n.mem.restore(keep, others, nil)
}

// planSettings adds to the plan which settings of the host were others before installations
// changed them, and returns what they must be.
func (n *Network) planSettings(plan *hostPlan, forward []string, others map[string]string) (map[string]string, error) {
	entries, err := n.mem.load()
	if err != nil {
		return nil, err
	}
	keep := map[string]string{}
	for _, name := range forward {
		key := forwardingKey(name)
		now, err := readSysctl(key)
		if err != nil {
			return nil, err
		}
		if e, ok := entries[key]; now == "0" || others[key] == "0" || ok && e.Was == "0" {
			keep[key] = "1"
			plan.opened = append(plan.opened, name)
		}
	}
	for _, name := range plan.answering {
		key := proxyDelayKey(name)
		now, err := readSysctl(key)
		if err != nil {
			return nil, err
		}
		keep[key] = "0"
		was := cmp.Or(entries[key].Was, others[key], now)
		if v, err := strconv.ParseUint(was, 10, 32); err == nil && v > 0 {
			plan.delays = append(plan.delays, delay{name, uint32(v)})
		}
	}
	return keep, nil
}

// apply puts the table into force; where the kernel refuses it because of the time-outs of
// single flows, without them.
func (h *hostSide) apply(ctx context.Context, plan hostPlan) error {
	text := plan.text()
	if h.rules.holds(text) {
		return nil
	}
	err := h.rules.apply(ctx, text)
	if err != nil && plan.idle > 0 && ctx.Err() == nil {
		plan.idle = 0
		if text = plan.text(); h.rules.apply(ctx, text) == nil {
			h.untimed, err = true, nil
		}
	}
	if err == nil {
		h.text = text
	}
	return err
}

func forwardingKey(name string) string { return filepath.Join("ipv4/conf", name, "forwarding") }

// uplinks lists the interfaces by which the host's routing tables, whichever rule leads to
// them, let packets leave: replies come in there, and the interface must forward them.
func (h *hostSide) uplinks(own func(link string) bool) ([]string, error) {
	list, err := retryDump(func() ([]netlink.Route, error) {
		return h.at.nl.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_UNSPEC, Type: unix.RTN_UNICAST},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	})
	if err != nil {
		return nil, err
	}
	l, err := h.at.links()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, r := range list {
		for _, index := range append([]int{r.LinkIndex}, hops(r)...) {
			if name := l.name[index]; name != "" && name != "lo" && !own(name) {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// lacks refuses public addresses that are the host's own: what answers them would end there,
// and never reach a NAT gateway.
func (h *hostSide) lacks(public []netip.Addr) error {
	if len(public) == 0 {
		return nil
	}
	list, err := retryDump(func() ([]netlink.Addr, error) { return h.at.nl.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return err
	}
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && slices.Contains(public, ip) {
			return errs.New(errs.Conflict, "the public address %s is the host's own: replies to it end at the host", ip).
				WithHint(`write "host" to leave as the host, or an address that is routed to it and that no interface of it has`)
		}
	}
	return nil
}

func hops(r netlink.Route) (out []int) {
	for _, h := range r.MultiPath {
		out = append(out, h.LinkIndex)
	}
	return out
}

func (s *space) mainRoutes() ([]netlink.Route, error) {
	return retryDump(func() ([]netlink.Route, error) {
		return s.nl.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
}

// pickTransit gives a NAT gateway the same address each time, unless a network of the
// host has it, or one of taken.
func (h *hostSide) pickTransit(seed string, taken map[netip.Addr]bool) (netip.Addr, error) {
	list, err := h.at.mainRoutes()
	if err != nil {
		return netip.Addr{}, err
	}
	for try := range 4096 {
		a := nth(transitSpace, hash22(seed, fmt.Sprint(try)))
		used := taken[a] || slices.ContainsFunc(list, func(r netlink.Route) bool {
			p := toPrefix(r.Dst)
			return p.Bits() != 0 && p.Contains(a)
		})
		if !used {
			return a, nil
		}
	}
	return netip.Addr{}, errors.New("the host's routes leave no address free in " + transitSpace.String())
}

// hash22 is a number below 2^22, not the first or the last.
func hash22(parts ...string) uint32 {
	var v uint32
	_, _ = fmt.Sscanf(digest(8, parts...), "%x", &v)
	return 1 + v%(1<<22-2)
}

// cleanHost removes our table, interfaces and sysctl values from the host's
// namespace. It stands on nothing but the names.
func (n *Network) cleanHost(ctx context.Context) error {
	h, err := n.openHostSide()
	if err != nil {
		return err
	}
	defer h.close()
	answers := n.settleAnswers(h.at, nil)
	_, err = h.at.dropLinks(func(name string) bool { return !n.isHostLink(name) })
	return errors.Join(answers, err, n.leaveHost(ctx, h))
}

// isInstallation says that an interface of the host is a NAT gateway's, of this installation
// or of another one.
func (n *Network) isInstallation(name string) bool {
	return n.isHostLink(name) || anyHostLink.MatchString(name)
}

var anyHostLink = regexp.MustCompile(`^s[0-9a-f]{1,8}-[a-z2-7]+$`)

func (n *Network) isHostLink(name string) bool {
	return len(name) == 15 && strings.HasPrefix(name, n.names.hostLinks())
}
