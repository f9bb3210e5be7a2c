package host

import (
	"runtime"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
)

func TestParseLoad(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		meminfo, loadavg string
		want             core.HostLoad
	}{
		"a machine": {"MemTotal:       24689764 kB\nMemFree:         1024 kB\nMemAvailable:   20480000 kB\n", "1.25 0.80 0.50 2/345 6789\n",
			core.HostLoad{Load: 1.25, MemoryMiB: 24111, AvailableMiB: 20000}},
		"nothing readable": {"", "", core.HostLoad{}},
		"something else":   {"MemTotal: many kB\n\nMemAvailable:\n", "busy\n", core.HostLoad{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.want.CPUs = runtime.NumCPU()
			if got := parseLoad(c.meminfo, c.loadavg); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
	if l := machineLoad(); l.MemoryMiB == 0 || l.AvailableMiB == 0 || l.AvailableMiB > l.MemoryMiB {
		t.Errorf("this machine: %+v", l)
	}
}
