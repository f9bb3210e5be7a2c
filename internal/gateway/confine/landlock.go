package confine

import (
	"fmt"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// bindABI is the first Landlock version that knows TCP bind (Linux 6.7). Debian 12's kernel has
// version 2: there the filter alone denies bind, as it does everywhere.
const bindABI = 4

// restrictFiles leaves no file but caCerts readable and, where the kernel can, no TCP port
// bindable, and puts signals and abstract sockets out of reach. It returns the kernel's
// Landlock version. TCP connect stays free: the network's rules decide on it.
func restrictFiles(caCerts string) (abi int, err error) {
	abi, err = ll.LandlockGetABIVersion()
	if err != nil {
		return 0, fmt.Errorf("this kernel has no Landlock: %w", err)
	}
	cfg := landlock.V7
	cfg.HandledAccessNet = ll.AccessNetBindTCP
	var rules []landlock.Rule
	if caCerts != "" {
		rules = append(rules, landlock.PathAccess(ll.AccessFSReadFile, caCerts))
	}
	// Every version restricts files; best effort gives up what the seccomp filter denies as well.
	if err := cfg.BestEffort().Restrict(rules...); err != nil {
		return 0, err
	}
	return abi, nil
}
