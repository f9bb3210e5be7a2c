package confine

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data: nr, arch, instruction_pointer, args[6]. Both
// architectures that we build for are little-endian.
const (
	offsetNr   = 0
	offsetArch = 4
	offsetArgs = 16
)

const (
	retAllow  = uint32(unix.SECCOMP_RET_ALLOW)
	retEPERM  = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EPERM)
	retENOSYS = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.ENOSYS)
)

// rule allows one system call under conditions that must all hold; without any, always.
// Several rules for one call are alternatives.
type rule struct {
	nr    uint32
	conds []cond
}

// cond holds if the argument, masked, equals want: all 64 bits of it, or the low 32 where
// the kernel takes an int and ignores the rest.
type cond struct {
	arg        int
	mask, want uint64
	isInt      bool
}

func argIs(arg int, want uint64) cond { return cond{arg, ^uint64(0), want, false} }
func intIs(arg int, want uint32) cond { return cond{arg, 0xffffffff, uint64(want), true} }
func intMasked(arg int, mask, want uint32) cond {
	return cond{arg, uint64(mask), uint64(want), true}
}

// masked compares all 64 bits under the mask.
func masked(arg int, mask, want uint64) cond { return cond{arg, mask, want, false} }

// namespaceFlags are the clone flags that would make a namespace.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
	unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// always lists the system calls that a Go program which only dials out needs whatever
// their arguments. bind, listen, accept, exec and fork are not among them.
func always() []uint32 {
	return append([]uint32{
		// Memory. mmap and mprotect stand below, with a condition.
		unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_BRK, unix.SYS_MREMAP, unix.SYS_MINCORE,
		// Threads, time, signals to itself.
		unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME,
		unix.SYS_GETTIMEOFDAY, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_SET_ROBUST_LIST,
		unix.SYS_RSEQ, unix.SYS_GETTID, unix.SYS_GETPID, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
		unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
		unix.SYS_RESTART_SYSCALL, unix.SYS_GETRANDOM, unix.SYS_GETRUSAGE, unix.SYS_UNAME,
		unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID,
		// Files: Landlock decides which. getdents64 lets a directory be denied by it.
		unix.SYS_OPENAT, unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64,
		unix.SYS_CLOSE, unix.SYS_LSEEK, unix.SYS_FSTAT,
		// Polling, pipes, and splicing between sockets.
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2,
		unix.SYS_PIPE2, unix.SYS_SPLICE,
		// Sockets that dial. socket itself stands below, with a condition.
		unix.SYS_CONNECT, unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG,
		unix.SYS_SHUTDOWN, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT,
	}, alwaysHere()...)
}

// conditional lists the system calls that are allowed with certain arguments only.
func conditional(pid int) []rule {
	const sockFlags = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	rules := []rule{
		// Threads, not processes, and never into a new namespace.
		{unix.SYS_CLONE, []cond{masked(0, unix.CLONE_THREAD|namespaceFlags, unix.CLONE_THREAD)}},
		// No memory becomes executable.
		{unix.SYS_MMAP, []cond{masked(2, unix.PROT_EXEC, 0)}},
		{unix.SYS_MPROTECT, []cond{masked(2, unix.PROT_EXEC, 0)}},
		{unix.SYS_TGKILL, []cond{intIs(0, uint32(pid))}},
		// The runtime names its memory; nothing else is set.
		{unix.SYS_PRCTL, []cond{intIs(0, unix.PR_SET_VMA)}},
		{unix.SYS_PRLIMIT64, []cond{intIs(0, 0), argIs(2, 0)}},
	}
	// TCP and UDP over IPv4. Naming the protocol shuts out MPTCP, which Landlock does not
	// see, and SCTP.
	for _, s := range []struct{ typ, proto uint32 }{
		{unix.SOCK_STREAM, 0}, {unix.SOCK_STREAM, unix.IPPROTO_TCP},
		{unix.SOCK_DGRAM, 0}, {unix.SOCK_DGRAM, unix.IPPROTO_UDP},
	} {
		rules = append(rules, rule{unix.SYS_SOCKET, []cond{
			intIs(0, unix.AF_INET), intMasked(1, ^uint32(sockFlags), s.typ), intIs(2, s.proto)}})
	}
	for _, cmd := range []uint32{unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_DUPFD_CLOEXEC} {
		rules = append(rules, rule{unix.SYS_FCNTL, []cond{intIs(1, cmd)}})
	}
	return rules
}

// program assembles the filter. Each conditional rule loads what it compares and starts
// by loading the number anew, so that no rule sees an argument in the number's place.
func program(pid int) []bpf.Instruction {
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		bpf.RetConstant{Val: retEPERM},
		bpf.LoadAbsolute{Off: offsetNr, Size: 4},
		// glibc, in tests, falls back to clone only if clone3 does not exist.
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE3, SkipTrue: 1},
		bpf.RetConstant{Val: retENOSYS},
	}
	for _, nr := range always() {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: nr, SkipTrue: 1}, bpf.RetConstant{Val: retAllow})
	}
	for _, r := range conditional(pid) {
		p = append(p, r.instructions()...)
	}
	return append(p, bpf.RetConstant{Val: retEPERM})
}

func (r rule) instructions() []bpf.Instruction {
	var body []bpf.Instruction
	for _, c := range r.conds {
		body = append(body, c.instructions()...)
	}
	body = append(body, bpf.RetConstant{Val: retAllow})
	// A comparison that fails skips the rest of the rule.
	for i, in := range body {
		if j, ok := in.(bpf.JumpIf); ok {
			j.SkipTrue = uint8(len(body) - i - 1)
			body[i] = j
		}
	}
	return append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetNr, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: r.nr, SkipTrue: uint8(len(body))},
	}, body...)
}

func (c cond) instructions() []bpf.Instruction {
	low := uint32(offsetArgs + 8*c.arg)
	out := compare(low, uint32(c.mask), uint32(c.want))
	if !c.isInt {
		out = append(out, compare(low+4, uint32(c.mask>>32), uint32(c.want>>32))...)
	}
	return out
}

func compare(off, mask, want uint32) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: off, Size: 4},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: want},
	}
}

// installFilter puts the filter on every thread, or on none.
func installFilter() error {
	raw, err := bpf.Assemble(program(os.Getpid()))
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	switch {
	case errno != 0:
		return errno
	case thread != 0: // success of the call, but the filter is on no thread
		return fmt.Errorf("thread %d can't take the filter", thread)
	}
	return nil
}
