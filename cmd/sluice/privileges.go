package main

import (
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// needed are the capabilities without which a host can't work, each with what for.
var needed = []struct {
	bit  uint
	name string
	why  string
}{
	{12, "CAP_NET_ADMIN", "network interfaces, routes and nftables"},
	{21, "CAP_SYS_ADMIN", "network namespaces and containers"},
	{7, "CAP_SETUID", "user namespaces of members"},
	{1, "CAP_DAC_OVERRIDE", "cgroups and /run"},
	{0, "CAP_CHOWN", "files of members"},
	{5, "CAP_KILL", "stopping members"},
}

// checkHost tells at once what a host lacks on this machine.
func checkHost(runtime string) error {
	if err := checkPrivileges(); err != nil {
		return err
	}
	for tool, pkg := range map[string]string{runtime: "runc", "nft": "nftables"} {
		if _, err := exec.LookPath(tool); err != nil {
			return errs.New(errs.Invalid, "%s is not installed, and a host can't work without it", tool).
				WithHint("apt-get install %s", pkg)
		}
	}
	return nil
}

func checkPrivileges() error {
	missing := missingCapabilities()
	if len(missing) == 0 {
		return nil
	}
	return errs.New(errs.Denied, "a host needs root: missing %s", strings.Join(missing, ", ")).
		WithHint("run it as root (sudo), or run \"sluice service\" here, which needs no privileges, and \"sluice host\" elsewhere")
}

func missingCapabilities() []string {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil // the first operation that needs one will tell
	}
	var effective uint64
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			effective, _ = strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		}
	}
	var out []string
	for _, c := range needed {
		if effective&(1<<c.bit) == 0 {
			out = append(out, c.name+" ("+c.why+")")
		}
	}
	return out
}
