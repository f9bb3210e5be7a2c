package confine

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// alwaysHere adds what exists on this architecture only.
func alwaysHere() []uint32 { return []uint32{unix.SYS_FSTATAT} }
