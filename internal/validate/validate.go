package validate

import (
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// Set judges one tenant's whole set of resources and returns every problem, in the
// order of the resources. The resources have their defaults; endpoints may lack an
// address.
func Set(resources []core.Resource) []*errs.Error {
	s := newSet(resources)
	seen, counts := map[string]bool{}, map[core.Kind]int{}
	for _, r := range resources {
		c := s.on(r)
		if seen[c.object] {
			c.bad("name", "%s is declared twice", c.object)
			continue
		}
		seen[c.object] = true
		counts[r.Kind()]++
		if m := most(r.Kind()); m > 0 && counts[r.Kind()] == m+1 {
			c.bad("name", "is one too many: at most %d of the kind %s are possible", m, r.Kind())
		}
		c.resource(r)
		c.references(r)
	}
	return s.problems
}

// set is the resources by kind and name, and what was found wrong with them.
type set struct {
	resources []core.Resource
	byName    map[core.Kind]map[string]core.Resource
	problems  []*errs.Error
}

func newSet(resources []core.Resource) *set {
	s := &set{resources: resources, byName: map[core.Kind]map[string]core.Resource{}}
	for _, r := range resources {
		of := s.byName[r.Kind()]
		if of == nil {
			of = map[string]core.Resource{}
			s.byName[r.Kind()] = of
		}
		if _, twice := of[r.ResourceName()]; !twice {
			of[r.ResourceName()] = r
		}
	}
	return s
}

// get finds a resource of the set.
func get[R core.Resource](s *set, kind core.Kind, name string) (R, bool) {
	r, ok := s.byName[kind][name].(R)
	return r, ok
}

// all lists the resources of one type in the order of the set.
func all[R core.Resource](s *set) []R {
	var out []R
	for _, r := range s.resources {
		if v, ok := r.(R); ok {
			out = append(out, v)
		}
	}
	return out
}

func (s *set) subnet(vnet, name string) (core.Subnet, bool) {
	v, ok := get[*core.VirtualNetwork](s, core.KindVirtualNetwork, vnet)
	if !ok {
		return core.Subnet{}, false
	}
	i := slices.IndexFunc(v.Subnets, func(sn core.Subnet) bool { return sn.Name == name })
	if i < 0 {
		return core.Subnet{}, false
	}
	return v.Subnets[i], true
}

// checker reports problems of one resource.
type checker struct {
	*set
	object string
}

func (s *set) on(r core.Resource) *checker {
	return &checker{set: s, object: objectOf(r)}
}

func objectOf(r core.Resource) string { return string(r.Kind()) + "/" + r.ResourceName() }

// bad reports a problem; a hint may be added to what it returns.
func (c *checker) bad(field, format string, args ...any) *errs.Error {
	e := errs.New(errs.Invalid, format, args...).On(c.object, field)
	c.problems = append(c.problems, e)
	return e
}

// oneOf reports a value that is none of those allowed.
func oneOf[T ~string](c *checker, field string, v T, allowed ...T) {
	if slices.Contains(allowed, v) {
		return
	}
	words := make([]string, len(allowed))
	for i, a := range allowed {
		words[i] = string(a)
	}
	if v == "" {
		c.bad(field, "is missing: one of %s", strings.Join(words, ", "))
		return
	}
	e := c.bad(field, "%q is none of %s", v, strings.Join(words, ", "))
	for _, w := range words {
		if strings.EqualFold(w, string(v)) {
			e.WithHint("write %s", w)
		}
	}
}

// resource applies the rules of r's kind.
func (c *checker) resource(r core.Resource) {
	switch r := r.(type) {
	case *core.VirtualNetwork:
		c.vnet(r)
	case *core.NetworkSecurityGroup:
		c.nsg(r)
	case *core.ApplicationSecurityGroup:
		c.asg(r)
	case *core.ServiceTag:
		c.serviceTag(r)
	case *core.NATGateway:
		c.nat(r)
	case *core.RouteTable:
		c.routeTable(r)
	case *core.PrivateDNSZone:
		c.zone(r)
	case *core.PrivateEndpoint:
		c.endpoint(r)
	case *core.Gateway:
		c.gateway(r)
	case *core.DataSource:
		c.dataSource(r)
	}
}
