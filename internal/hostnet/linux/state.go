package linux

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// protocol marks our routes in the kernel, so that pruning touches no others.
const protocol = 83

// The priorities of our policy rules lie behind the main table's (32766), which
// decides first and for every address of the virtual network.
const (
	ruleBase = 40000
	ruleEnd  = 50000
)

// state is what a namespace must hold besides its interfaces: plain values, so that
// what is wanted and what the kernel has can be compared.
type state struct {
	addrs  []address
	neighs []neighbour
	routes []route
	rules  []rule
}

// address is a /32 on an interface.
type address struct {
	link string
	ip   netip.Addr
}

// neighbour is a permanent entry: no ARP is ever needed for it.
type neighbour struct {
	link string
	ip   netip.Addr
	mac  string
}

// route is a unicast route, or an unreachable one if it has no link. Kind, if it is not
// 0, is another type of the kernel's: RTN_BLACKHOLE, RTN_THROW. Of equal destinations the
// lowest metric decides.
type route struct {
	kind   int
	metric int
	table  int
	dst    netip.Prefix
	link   string
	via    netip.Addr
	src    netip.Addr
}

// rule sends what comes from a prefix, and carries the mark if there is one, to a routing
// table.
type rule struct {
	priority int
	from     netip.Prefix
	table    int
	mark     uint32
}

func (s *state) add(o state) {
	s.addrs = append(s.addrs, o.addrs...)
	s.neighs = append(s.neighs, o.neighs...)
	s.routes = append(s.routes, o.routes...)
	s.rules = append(s.rules, o.rules...)
}

// beyond returns what have holds and want does not.
func beyond[T comparable](have, want []T) []T {
	wanted := make(map[T]bool, len(want))
	for _, w := range want {
		wanted[w] = true
	}
	var out []T
	for _, h := range have {
		if !wanted[h] {
			out = append(out, h)
		}
	}
	return out
}

// links maps the names of a namespace's interfaces to their indexes and back.
type links struct {
	index map[string]int
	name  map[int]string
}

func newLinks(list ...netlink.Link) links {
	l := links{map[string]int{}, map[int]string{}}
	for _, k := range list {
		l.index[k.Attrs().Name], l.name[k.Attrs().Index] = k.Attrs().Index, k.Attrs().Name
	}
	return l
}

// assert makes everything in want true, in an order in which each step stands on the
// one before. What is true already is written over with itself.
func (s *space) assert(l links, want state) error {
	for _, a := range want.addrs {
		link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: a.link, Index: l.index[a.link]}}
		if err := s.nl.AddrReplace(link, &netlink.Addr{IPNet: hostNet(a.ip)}); err != nil {
			return fmt.Errorf("address %s on %s: %w", a.ip, a.link, err)
		}
	}
	for _, n := range want.neighs {
		k, err := n.kernel(l)
		if err == nil {
			err = s.nl.NeighSet(k)
		}
		if err != nil {
			return fmt.Errorf("neighbour %s on %s: %w", n.ip, n.link, err)
		}
	}
	for _, r := range want.routes {
		if err := s.nl.RouteReplace(r.kernel(l)); err != nil {
			return fmt.Errorf("route to %s on %q: %w", r.dst, r.link, err)
		}
	}
	for _, r := range want.rules {
		if err := s.nl.RuleAdd(r.kernel()); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("rule from %s: %w", r.from, err)
		}
	}
	return nil
}

// read returns what the kernel holds of ours; own says which interfaces are ours.
func (s *space) read(l links, own func(link string) bool) (state, error) {
	var out state
	addrs, err := retryDump(func() ([]netlink.Addr, error) { return s.nl.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return out, err
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && !ip.IsLoopback() && own(l.name[a.LinkIndex]) {
			out.addrs = append(out.addrs, address{l.name[a.LinkIndex], ip})
		}
	}
	neighs, err := retryDump(func() ([]netlink.Neigh, error) { return s.nl.NeighList(0, unix.AF_INET) })
	if err != nil {
		return out, err
	}
	for _, n := range neighs {
		ip, ok := netip.AddrFromSlice(n.IP.To4())
		if ok && n.State == netlink.NUD_PERMANENT && own(l.name[n.LinkIndex]) {
			out.neighs = append(out.neighs, neighbour{l.name[n.LinkIndex], ip, n.HardwareAddr.String()})
		}
	}
	if out.routes, err = s.readRoutes(l, own); err != nil {
		return out, err
	}
	out.rules, err = s.readRules()
	return out, err
}

func (s *space) readRoutes(l links, own func(string) bool) ([]route, error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_UNSPEC, Protocol: protocol}
	list, err := retryDump(func() ([]netlink.Route, error) {
		return s.nl.RouteListFiltered(unix.AF_INET, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return nil, err
	}
	var out []route
	for _, k := range list {
		r := route{table: k.Table, link: l.name[k.LinkIndex], via: toAddr(k.Gw), src: toAddr(k.Src)}
		r.dst = toPrefix(k.Dst)
		r.metric = k.Priority
		switch k.Type {
		case unix.RTN_UNREACHABLE:
			r.link = ""
		case unix.RTN_BLACKHOLE, unix.RTN_THROW:
			r.link, r.kind = "", k.Type
		}
		if own(r.link) {
			out = append(out, r)
		}
	}
	return out, nil
}

func (s *space) readRules() ([]rule, error) {
	list, err := retryDump(func() ([]netlink.Rule, error) { return s.nl.RuleList(unix.AF_INET) })
	if err != nil {
		return nil, err
	}
	var out []rule
	for _, k := range list {
		if k.Priority >= ruleBase && k.Priority < ruleEnd || k.Priority >= ruleTables && k.Priority <= ruleLocal {
			out = append(out, rule{k.Priority, toPrefix(k.Src), k.Table, k.Mark})
		}
	}
	return out, nil
}

// prune takes away what is ours and not in want.
func (s *space) prune(l links, want state, own func(link string) bool) error {
	have, err := s.read(l, own)
	if err != nil {
		return err
	}
	var failed []error
	del := func(err error) {
		if err != nil && !gone(err) {
			failed = append(failed, err)
		}
	}
	for _, r := range beyond(have.rules, want.rules) {
		del(s.nl.RuleDel(r.kernel()))
	}
	for _, r := range beyond(have.routes, want.routes) {
		del(s.nl.RouteDel(r.kernel(l)))
	}
	for _, n := range beyond(have.neighs, want.neighs) {
		if k, err := n.kernel(l); err == nil {
			del(s.nl.NeighDel(k))
		}
	}
	for _, a := range beyond(have.addrs, want.addrs) {
		link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: a.link, Index: l.index[a.link]}}
		del(s.nl.AddrDel(link, &netlink.Addr{IPNet: hostNet(a.ip)}))
	}
	return errors.Join(failed...)
}

// gone says that the kernel had nothing to delete.
func gone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) ||
		errors.Is(err, unix.EADDRNOTAVAIL) || errors.As(err, &notFound)
}

// retryDump repeats a dump that something changed under, a bounded number of times.
func retryDump[T any](dump func() ([]T, error)) (out []T, err error) {
	for range 5 {
		out, err = dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

func (n neighbour) kernel(l links) (*netlink.Neigh, error) {
	mac, err := net.ParseMAC(n.mac)
	if err != nil {
		return nil, err
	}
	return &netlink.Neigh{
		LinkIndex: l.index[n.link], Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
		IP: n.ip.AsSlice(), HardwareAddr: mac,
	}, nil
}

func (r route) kernel(l links) *netlink.Route {
	k := &netlink.Route{Table: r.table, Dst: toNet(r.dst), Protocol: protocol, Priority: r.metric}
	if r.link == "" {
		k.Type = cmp.Or(r.kind, unix.RTN_UNREACHABLE)
		return k
	}
	k.LinkIndex = l.index[r.link]
	if r.src.IsValid() {
		k.Src = r.src.AsSlice()
	}
	if r.via.IsValid() {
		k.Gw, k.Flags = r.via.AsSlice(), int(netlink.FLAG_ONLINK)
	} else {
		k.Scope = netlink.SCOPE_LINK
	}
	return k
}

func (r rule) kernel() *netlink.Rule {
	k := netlink.NewRule()
	k.Family, k.Priority, k.Table = unix.AF_INET, r.priority, r.table
	if r.from.Bits() > 0 {
		k.Src = toNet(r.from)
	}
	k.Mark = r.mark
	return k
}

func hostNet(ip netip.Addr) *net.IPNet { return toNet(netip.PrefixFrom(ip, ip.BitLen())) }

func toNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func toAddr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip.To4())
	return a
}

// toPrefix reads a destination as the kernel gives it: none is the default route.
func toPrefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(toAddr(n.IP), bits)
}
