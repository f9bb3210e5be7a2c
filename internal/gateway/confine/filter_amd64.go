package confine

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// alwaysHere adds what exists on this architecture only. Calls of the x32 ABI carry a bit
// in their number and match nothing.
func alwaysHere() []uint32 { return []uint32{unix.SYS_NEWFSTATAT, unix.SYS_EPOLL_WAIT, unix.SYS_TIME} }
