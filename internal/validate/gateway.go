package validate

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/catalog"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/schedule"
)

const (
	maxMembers   = 9
	minAutoPause = core.Duration(time.Second)
	minCPUs      = 0.1
	maxCPUs      = 256
	minMemoryMiB = 64
	maxMemoryMiB = 4 << 20
)

func (c *checker) gateway(g *core.Gateway) {
	c.gatewayName(g.Name)
	switch m := g.Members; {
	case m.Min < 0:
		c.bad("members.min", "%d is below 0", m.Min)
	case m.Max < 1:
		c.bad("members.max", "%d is below 1", m.Max)
	case m.Max > maxMembers:
		c.bad("members.max", "%d is above %d, the most that a gateway may have", m.Max, maxMembers)
	case m.Min > m.Max:
		c.bad("members.min", "%d is above members.max, which is %d", m.Min, m.Max)
	}
	if g.AutoPause != core.Never && g.AutoPause < minAutoPause {
		c.bad("autoPause", "%s is below 1s", g.AutoPause).WithHint("write never for a gateway that does not pause")
	}
	if s := g.Size.CPUs; !(s >= minCPUs && s <= maxCPUs) {
		c.bad("size.cpus", "%g is not from %g to %d", s, minCPUs, maxCPUs)
	}
	if s := g.Size.MemoryMiB; s < minMemoryMiB || s > maxMemoryMiB {
		c.bad("size.memoryMiB", "%d is not from %d to %d", s, minMemoryMiB, maxMemoryMiB)
	}
	c.classLimits("classes.interactive", g.Limits(core.ClassInteractive))
	c.classLimits("classes.refresh", g.Limits(core.ClassRefresh))
	for i, a := range g.Schedule {
		c.scheduled(fmt.Sprintf("schedule[%d].", i), a)
	}
	c.delegated(g)
	c.memberships(g.ApplicationSecurityGroups)
}

func (c *checker) scheduled(at string, a core.ScheduledAct) {
	oneOf(c, at+"action", a.Action, core.ScheduleWake, core.SchedulePause)
	_, err := schedule.Parse(a)
	var bad *schedule.Error
	if errors.As(err, &bad) {
		c.bad(at+bad.Field, "%s", bad.Reason)
	}
}

func (c *checker) delegated(g *core.Gateway) {
	s, ok := c.subnet(g.VNet, g.Subnet)
	switch {
	case !ok || s.Delegation == core.DelegationGateways:
	case s.Delegation == "":
		c.bad("subnet", "subnet %q is not delegated", s.Name).
			WithHint("add delegation: %s to the subnet in VirtualNetwork/%s", core.DelegationGateways, g.VNet)
	default:
		c.bad("subnet", "subnet %q is delegated to %s, a gateway needs %s", s.Name, s.Delegation, core.DelegationGateways)
	}
}

func (c *checker) dataSource(d *core.DataSource) {
	c.sourceName(d.Name)
	c.dnsServers("dnsServers", d.DNSServers, maxSourceServers, false)
	entry, ok := catalog.Lookup(d.Type)
	if !ok {
		var types []string
		for _, known := range catalog.All() {
			types = append(types, known.Type)
		}
		c.bad("type", "%q is no type of data source: %s", d.Type, strings.Join(types, ", "))
		return
	}
	c.parameters(entry, d.Parameters)
	c.credentials(entry, d.Credentials)
}

func (c *checker) parameters(entry catalog.Descriptor, given map[string]string) {
	var known []string
	for _, p := range entry.Parameters {
		known = append(known, p.Name)
		v, ok := given[p.Name]
		field := "parameters." + p.Name
		switch {
		case v == "" && p.Required:
			c.bad(field, "is missing: %s", p.Doc)
		case ok && len(p.Values) > 0 && !slices.Contains(p.Values, v):
			c.bad(field, "%q is none of %s", v, strings.Join(p.Values, ", "))
		case ok && p.Name == "port":
			if n, isPort := port(v); !isPort || n == 0 {
				c.bad(field, "%q is not a port: a number from 1 to 65535", v)
			}
		}
	}
	names := make([]string, 0, len(given))
	for name := range given {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if !slices.Contains(known, name) {
			c.bad("parameters."+name, "%s has no parameter %q; it has %s", entry.Title, name, strings.Join(known, ", "))
		}
	}
}

func (c *checker) credentials(entry catalog.Descriptor, cr core.Credentials) {
	oneOf(c, "credentials.kind", cr.Kind, entry.Credentials...)
	switch cr.Kind {
	case core.CredentialBasic:
		if cr.Username == "" {
			c.bad("credentials.username", "is missing: credentials of the kind basic are a user name and a password")
		}
	case core.CredentialAnonymous:
		hint := "write kind: basic to sign in with a user name and a password"
		if cr.Username != "" {
			c.bad("credentials.username", "credentials of the kind anonymous have none").WithHint("%s", hint)
		}
		if !cr.Password.IsZero() {
			c.bad("credentials.password", "credentials of the kind anonymous have none").WithHint("%s", hint)
		}
	}
}
