package linux

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

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
	h.rules.close()
	h.at.close()
}

// hostPlan is what the host's table is made of.
type hostPlan struct {
	table, links string
	masquerade   []netip.Addr // transit addresses that leave as the host
	sources      []netip.Addr // every address that a NAT gateway may send from
	opened       []string     // interfaces that forward only because of us
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
	line("\tchain prerouting {\n\t\ttype filter hook prerouting priority raw; policy accept;")
	line("\t\tiifname %s ip saddr != { %s } counter drop comment \"not an address of a NAT gateway\"", ours, join(p.sources))
	line("\t}\n\tchain input {\n\t\ttype filter hook input priority filter - 5; policy accept;")
	line("\t\tiifname %s counter drop comment \"the host itself is out of reach\"", ours)
	line("\t}\n\tchain forward {\n\t\ttype filter hook forward priority filter - 5; policy accept;")
	line("\t\tiifname %s oifname %s counter drop comment \"NAT gateways never meet\"", ours, ours)
	line("\t\tiifname %s ip daddr %s counter drop comment \"link-local\"", ours, linkLocal)
	line("\t\toifname %s ct state established,related accept", ours)
	line("\t\toifname %s counter drop comment \"unsolicited\"", ours)
	for _, name := range p.opened {
		line("\t\tiifname %q counter drop comment \"did not forward before\"", name)
	}
	line("\t}\n\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;")
	if len(p.masquerade) > 0 {
		line("\t\toifname != %s ip saddr { %s } masquerade", ours, join(p.masquerade))
	}
	line("\t}\n}")
	return b.String()
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
		plan.sources = append(plan.sources, g.sources()...)
		if g.transit.IsValid() {
			plan.masquerade = append(plan.masquerade, g.transit)
		}
	}
	if len(gateways) == 0 {
		return nil // see unuseHost
	}
	h, key := n.hostSide, plan.text()
	n.reaper.settle(hostJob)
	if !again && h.key == key && h.rules.holds(h.text) {
		return nil
	}
	forward, err := h.uplinks()
	if err != nil {
		return fmt.Errorf("finding the interface of the default route: %w", err)
	}
	if err := h.at.do(func() error { return n.applyHostSide(ctx, plan, forward) }); err != nil {
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

// leaveHost removes our table and restores the sysctl values.
func (n *Network) leaveHost(ctx context.Context, h *hostSide) error {
	tables, err := h.rules.tables()
	if err == nil && slices.Contains(tables, n.names.hostTable()) {
		err = h.rules.apply(ctx, hostPlan{table: n.names.hostTable()}.text())
	}
	return errors.Join(err, h.at.do(func() error { return n.mem.restore(nil) }))
}

// applyHostSide runs in a thread of the host's namespace. The table comes before the
// forwarding that it confines.
func (n *Network) applyHostSide(ctx context.Context, plan hostPlan, forward []string) error {
	entries, err := n.mem.load()
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, name := range forward {
		key := forwardingKey(name)
		now, err := readSysctl(key)
		if err != nil {
			return err
		}
		if e, ok := entries[key]; now == "0" || ok && e.Was == "0" {
			keep[key] = true
			plan.opened = append(plan.opened, name)
		}
	}
	h := n.hostSide
	if text := plan.text(); !h.rules.holds(text) {
		if err := h.rules.apply(ctx, text); err != nil {
			return err
		}
		h.text = text
	}
	for _, name := range plan.opened {
		if err := n.mem.set(forwardingKey(name), "1"); err != nil {
			return err
		}
	}
	return n.mem.restore(keep)
}

func forwardingKey(name string) string { return filepath.Join("ipv4/conf", name, "forwarding") }

// uplinks lists the interfaces of the host's default routes.
func (h *hostSide) uplinks() ([]string, error) {
	list, err := h.routes()
	if err != nil {
		return nil, err
	}
	l, err := h.at.links()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, r := range list {
		if toPrefix(r.Dst).Bits() != 0 {
			continue
		}
		for _, index := range append([]int{r.LinkIndex}, hops(r)...) {
			if name := l.name[index]; name != "" {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func hops(r netlink.Route) (out []int) {
	for _, h := range r.MultiPath {
		out = append(out, h.LinkIndex)
	}
	return out
}

func (h *hostSide) routes() ([]netlink.Route, error) {
	return retryDump(func() ([]netlink.Route, error) {
		return h.at.nl.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
}

// pickTransit gives a NAT gateway the same address each time, unless a network of the
// host has it, or one of taken.
func (h *hostSide) pickTransit(seed string, taken map[netip.Addr]bool) (netip.Addr, error) {
	list, err := h.routes()
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
	fmt.Sscanf(digest(8, parts...), "%x", &v)
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
	_, err = h.at.dropLinks(func(name string) bool { return !n.isHostLink(name) })
	return errors.Join(err, n.leaveHost(ctx, h))
}

func (n *Network) isHostLink(name string) bool {
	return len(name) == 15 && strings.HasPrefix(name, n.names.hostLinks())
}
