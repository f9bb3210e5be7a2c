package confine

import (
	"fmt"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// floorABI is the first Landlock version that knows TCP bind.
const floorABI = 4

// restrictFiles leaves no file but caCerts readable, no TCP port bindable, and puts
// signals and abstract sockets out of reach where the kernel can. It returns the
// kernel's Landlock version. TCP connect stays free: the network's rules decide on it.
func restrictFiles(caCerts string) (abi int, err error) {
	abi, err = ll.LandlockGetABIVersion()
	if err != nil {
		return 0, fmt.Errorf("this kernel has no Landlock: %w", err)
	}
	if abi < floorABI {
		return 0, fmt.Errorf("this kernel's Landlock is version %d; denying bind needs %d", abi, floorABI)
	}
	cfg := landlock.V7
	cfg.HandledAccessNet = ll.AccessNetBindTCP
	var rules []landlock.Rule
	if caCerts != "" {
		rules = append(rules, landlock.PathAccess(ll.AccessFSReadFile, caCerts))
	}
	// Version 4 is certain here, so that best effort gives up scopes and ioctl at most.
	if err := cfg.BestEffort().Restrict(rules...); err != nil {
		return 0, err
	}
	return abi, nil
}
