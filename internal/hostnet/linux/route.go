package linux

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/policy"
	"golang.org/x/sys/unix"
)

// The priorities of the rules that user-defined routes need: before V's own addresses.
// They ask for the mark of members' packets. What V itself sends (replies of endpoints and
// of the resolver) has none, nor has the kernel's question for a source's way back.
const (
	ruleTables = 10000
	ruleLocal  = 20000
)

// lastResort is the metric of the route that holds when the device of a better one is gone.
const lastResort = 1000

func subnetTable(vnetUID, subnet string) int {
	v, err := strconv.ParseUint(digest(7, vnetUID, subnet), 16, 31)
	if err != nil {
		panic(err) // seven hex digits are a number
	}
	return 1<<29 | int(v)
}

// routing is what V holds for the route tables of its subnets; nothing if there is none.
// A way through an interface that is not there is no way.
func (v *vnet) routing(l links) state {
	var s state
	for _, sub := range v.goal.Subnets {
		compiled := policy.CompileRoutes(v.goal, sub, v.resolvers())
		if len(compiled) == 0 {
			continue
		}
		table := subnetTable(v.goal.UID, sub.Name)
		for _, r := range compiled {
			s.routes = append(s.routes, v.tableRoutes(l, table, r)...)
		}
		s.rules = append(s.rules, rule{priority: ruleTables, from: sub.Prefix.Masked(), table: table, mark: policy.RouteMark})
	}
	if len(s.rules) > 0 {
		local := rule{priority: ruleLocal, from: everywhere, table: unix.RT_TABLE_LOCAL}
		s.rules = append([]rule{local}, s.rules...)
	}
	return s
}

// tableRoutes are the kernel's routes for one compiled one.
func (v *vnet) tableRoutes(l links, table int, r policy.TableRoute) []route {
	if r.Kind == policy.HopOn {
		return []route{{table: table, dst: r.Prefix, kind: unix.RTN_THROW}}
	}
	out := []route{{table: table, dst: r.Prefix, kind: unix.RTN_BLACKHOLE, metric: lastResort}}
	link, via := v.wayOut(r)
	if _, ok := l.index[link]; ok {
		out = append(out, route{table: table, dst: r.Prefix, link: link, via: via})
	}
	return out
}

// wayOut names the interface and the next hop of a route that leads to one.
func (v *vnet) wayOut(r policy.TableRoute) (link string, via netip.Addr) {
	switch r.Kind {
	case policy.HopNAT:
		for uid, g := range v.nats {
			if g.goal.Name == r.Name {
				return natInnerLink(uid), hopUp
			}
		}
	case policy.HopHost:
		for _, u := range v.goal.Uplinks {
			if u.Here && policy.HasAppliance(v.goal, u.Uplink, r.Via) {
				return v.n.names.uplinkLink(v.goal.UID, u.Name), r.Via
			}
		}
	}
	return "", netip.Addr{}
}

// buildRoutes makes the tables before any port can send: what leads by an uplink that is
// not there yet leads nowhere until then.
func (v *vnet) buildRoutes() error {
	l, err := v.at.links()
	if err != nil {
		return err
	}
	want := v.routing(l)
	if err := v.at.assert(l, want); err != nil {
		return fmt.Errorf("user-defined routes: %w", err)
	}
	return v.at.localRule(len(want.rules) == 0)
}

// routeToAppliances completes routes to appliances once the uplinks are there.
func (v *vnet) routeToAppliances() {
	if !slices.ContainsFunc(v.goal.RouteTables, func(t core.RouteTable) bool {
		return slices.ContainsFunc(t.Routes, func(r core.Route) bool { return r.NextHop == core.HopVirtualAppliance })
	}) {
		return
	}
	if err := v.buildRoutes(); err != nil {
		v.problem(v.object(), machineError("making the routes of virtual network "+v.goal.Name, err))
		v.ready = false
	}
}

// localRule has the rule for a namespace's own addresses come first, as the kernel made
// it, or not. It is never without one: the other stands before this goes, and goes later.
func (s *space) localRule(first bool) error {
	list, err := retryDump(func() ([]rule, error) { return s.rulesAt(0) })
	if err != nil {
		return fmt.Errorf("reading the rules: %w", err)
	}
	kernel := rule{from: everywhere, table: unix.RT_TABLE_LOCAL}
	switch have := len(list) > 0; {
	case first && !have:
		err = s.nl.RuleAdd(kernel.kernel())
		if errors.Is(err, unix.EEXIST) {
			err = nil
		}
	case !first && have:
		err = s.nl.RuleDel(kernel.kernel())
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("the rule of the namespace's own addresses: %w", err)
	}
	return nil
}

func (s *space) rulesAt(priority int) ([]rule, error) {
	list, err := s.nl.RuleList(unix.AF_INET)
	var out []rule
	for _, k := range list {
		if k.Priority == priority {
			out = append(out, rule{priority: k.Priority, from: toPrefix(k.Src), table: k.Table})
		}
	}
	return out, err
}

func cloneTables(list []core.RouteTable) []core.RouteTable {
	list = slices.Clone(list)
	for i := range list {
		list[i].Routes = slices.Clone(list[i].Routes)
	}
	return list
}
