package gateway

import "syscall"

// peakMemory is the most resident memory that this process has had, in bytes. The
// memory's limit itself is the host's work (cgroup and GOMEMLIMIT).
func peakMemory() int64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return usage.Maxrss << 10 // Linux counts in KiB
}
