package oci

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Nobody but its parent learns how a process ended, before Linux 6.15: and a sandbox's parent,
// once the runtime has done its work, is the machine's first process, which takes the status
// and keeps it to itself. On such kernels this process has the sandboxes that it starts
// become its own children, and what the runtime leaves behind with them; so it must reap them.

// adoptOrphans makes this process the parent of what its children leave behind, if the kernel
// calls for it.
var adoptOrphans = sync.OnceValue(func() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	if keepsStatus(unix.ByteSliceToString(name.Release[:])) {
		return nil
	}
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
})

// keepsStatus reports whether a kernel of that release tells how a process ended to whoever
// holds a pidfd of it.
func keepsStatus(release string) bool {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return false
	}
	return major > 6 || major == 6 && minor >= 15
}

// reap lets an ended process go, if it is this process's child.
func (p *proc) reap() {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return
	}
	conn.Control(func(fd uintptr) { //nolint:errcheck // the file is open
		unix.Waitid(unix.P_PIDFD, int(fd), nil, unix.WEXITED|unix.WNOHANG, nil) //nolint:errcheck // ECHILD: it is another's
	})
}

// reapKilled waits for processes that were killed and have left their cgroup, as far as they are
// this process's children: the others' parents do.
func reapKilled(pids map[int]bool) {
	for pid := range pids {
		for {
			if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
}

// reapGroup waits for what a call of the runtime that has ended left in its process group:
// nothing, unless it was killed.
func reapGroup(leader int) {
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if _, err := unix.Wait4(-leader, nil, unix.WNOHANG, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return // ECHILD: there is none
		}
	}
}
