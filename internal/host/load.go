package host

import (
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// machineLoad reads what is in use of this machine; what can't be read is zero.
func machineLoad() core.HostLoad {
	meminfo, _ := os.ReadFile("/proc/meminfo")
	loadavg, _ := os.ReadFile("/proc/loadavg")
	return parseLoad(string(meminfo), string(loadavg))
}

// parseLoad reads the texts of /proc/meminfo and /proc/loadavg.
func parseLoad(meminfo, loadavg string) core.HostLoad {
	out := core.HostLoad{CPUs: runtime.NumCPU()}
	for line := range strings.Lines(meminfo) {
		words := strings.Fields(line) // "MemTotal:  24689764 kB"
		if len(words) < 2 {
			continue
		}
		kib, err := strconv.ParseInt(words[1], 10, 64)
		switch {
		case err != nil:
		case words[0] == "MemTotal:":
			out.MemoryMiB = kib >> 10
		case words[0] == "MemAvailable:":
			out.AvailableMiB = kib >> 10
		}
	}
	if words := strings.Fields(loadavg); len(words) > 0 {
		out.Load, _ = strconv.ParseFloat(words[0], 64) // zero says that it is not known
	}
	return out
}
