package gateway

import (
	"syscall"
	"unsafe"
)

// peakMemory is the most resident memory that this process has had, in bytes. The
// memory's limit itself is the host's work (cgroup and GOMEMLIMIT).
func peakMemory() int64 {
	var usage syscall.Rusage
	// It never blocks, so the scheduler need not be told (as in package sockio).
	if _, _, errno := syscall.RawSyscall(syscall.SYS_GETRUSAGE, syscall.RUSAGE_SELF, uintptr(unsafe.Pointer(&usage)), 0); errno != 0 {
		return 0
	}
	return usage.Maxrss << 10 // Linux counts in KiB
}
