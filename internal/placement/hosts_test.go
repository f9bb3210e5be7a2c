package placement

import (
	"strings"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

func TestChooseHost(t *testing.T) {
	t.Parallel()
	load := func(available int64, load float64) core.HostLoad {
		return core.HostLoad{CPUs: 2, Load: load, MemoryMiB: 10_000, AvailableMiB: available}
	}
	host := func(name string, l core.HostLoad) core.Host { return core.Host{Name: name, Connected: true, Load: l} }
	idle := load(9000, .1)
	for name, c := range map[string]struct {
		hosts []core.Host
		on    map[string]Occupancy
		want  string // or what the error says
		class errs.Class
	}{
		"fewest members":         {[]core.Host{host("b", idle), host("a", idle)}, map[string]Occupancy{"a": {Members: 2}, "b": {Members: 1}}, "b", ""},
		"by name":                {[]core.Host{host("b", idle), host("a", idle)}, nil, "a", ""},
		"not connected":          {[]core.Host{host("b", idle), {Name: "a"}}, nil, "b", ""},
		"spread over hosts":      {[]core.Host{host("a", idle), host("b", idle)}, map[string]Occupancy{"a": {Members: 1, OfGateway: 1}, "b": {Members: 9}}, "b", ""},
		"a busy one last":        {[]core.Host{host("a", load(9000, 4.1)), host("b", idle)}, map[string]Occupancy{"b": {Members: 9}}, "b", ""},
		"busy is better than no": {[]core.Host{host("a", load(9000, 40))}, nil, "a", ""},
		"a full one is left out": {[]core.Host{host("a", load(531, .1)), host("b", idle)}, map[string]Occupancy{"b": {OfGateway: 3}}, "b", ""},
		"just enough":            {[]core.Host{host("a", load(532, .1))}, nil, "a", ""},
		"all full": {[]core.Host{host("a", load(531, .1)), host("b", load(0, .1))}, nil,
			"host a has 531 MiB of 10000 MiB of memory available, and takes a member only with 532 MiB; host b has 0 MiB", errs.Exhausted},
		"what is not up yet counts": {[]core.Host{host("a", load(600, .1))}, map[string]Occupancy{"a": {Starting: 3}}, "takes a member only with 628 MiB", errs.Exhausted},
		"reservations":              {[]core.Host{host("a", idle)}, map[string]Occupancy{"a": {Members: 296}}, "has 296 members", errs.Exhausted},
		"the last reservation":      {[]core.Host{host("a", idle)}, map[string]Occupancy{"a": {Members: 295}}, "a", ""},
		"a small machine":           {[]core.Host{host("a", core.HostLoad{MemoryMiB: 512, AvailableMiB: 159})}, nil, "only with 160 MiB", errs.Exhausted},
		"a host that can't tell":    {[]core.Host{host("a", core.HostLoad{})}, map[string]Occupancy{"a": {Members: 9999}}, "a", ""},
		"none":                      {[]core.Host{{Name: "a"}}, nil, "no host is connected", errs.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := ChooseHost(c.hosts, func(h string) Occupancy { return c.on[h] })
			if c.class == "" {
				if err != nil || got != c.want {
					t.Errorf("%q, %v; want %q", got, err, c.want)
				}
				return
			}
			if errs.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q, %v (%s); want %s: …%s…", got, err, errs.ClassOf(err), c.class, c.want)
			}
		})
	}
}
