package skew

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// notification is struct seccomp_notif, response struct seccomp_notif_resp.
type notification struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type response struct {
	id    uint64
	val   int64
	err   int32
	flags uint32
}

// The requests of the listener, from <linux/seccomp.h>.
const (
	ioctlReceive = 0xc0502100
	ioctlSend    = 0xc0182101
)

func nextNotification(listener int) (n notification, err error) {
	return n, ioctl(listener, ioctlReceive, unsafe.Pointer(&n))
}

func (r response) send(listener int) error { return ioctl(listener, ioctlSend, unsafe.Pointer(&r)) }

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// install puts this thread under the filter and returns the listener of its notifications.
func install() (int, error) {
	prog, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 4, Size: 4},                                                 // the architecture
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.AUDIT_ARCH_X86_64, SkipTrue: 6},      //
		bpf.LoadAbsolute{Off: 0, Size: 4},                                                 // the system call
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_SCHED_GETAFFINITY, SkipTrue: 3},     //
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLOCK_GETTIME, SkipTrue: 3},      //
		bpf.LoadAbsolute{Off: 16, Size: 4},                                                // which clock
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(unix.CLOCK_REALTIME), SkipTrue: 1}, //
		bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	})
	if err != nil {
		return -1, err
	}
	filter := make([]unix.SockFilter, len(prog))
	for i, in := range prog {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// Once the supervisor has a notification only a fatal signal ends the wait: the signals with
	// which Go preempts itself would otherwise make a busy program ask for ever.
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return -1, fmt.Errorf("install the filter: %w", errno)
	}
	return int(fd), nil
}

// call is clock_gettime as a system call: mov eax, 228; syscall; ret.
var call = []byte{0xb8, unix.SYS_CLOCK_GETTIME, 0, 0, 0, 0x0f, 0x05, 0xc3}

// vdso knows where clock_gettime stands in the page of code that the kernel gives each process.
type vdso struct{ buf [8]byte }

// patch makes a process's vDSO call the kernel. Other processes keep theirs: a page that is
// written to is the process's own from then on.
func (v *vdso) patch(pid int) error {
	at, err := clockGettime()
	if err != nil {
		return err
	}
	start, _, err := vdsoOf(fmt.Sprint(pid))
	if err != nil {
		return err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	if _, err := mem.ReadAt(v.buf[:], start+at); err != nil {
		return fmt.Errorf("read the vDSO of process %d: %w", pid, err)
	}
	if bytes.Equal(v.buf[:], call) {
		return nil
	}
	if _, err := mem.WriteAt(call, start+at); err != nil {
		return fmt.Errorf("change the vDSO of process %d: %w", pid, err)
	}
	return nil
}

// vdsoOf returns where a process has its vDSO.
func vdsoOf(pid string) (start, end int64, err error) {
	maps, err := os.ReadFile("/proc/" + pid + "/maps")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(line, "[vdso]\n") {
			_, err := fmt.Sscanf(line, "%x-%x", &start, &end)
			return start, end, err
		}
	}
	return 0, 0, fmt.Errorf("process %s: no vDSO: %w", pid, os.ErrNotExist)
}

// clockGettime is where the function stands in the vDSO, which is the same in all processes.
var clockGettime = sync.OnceValues(func() (int64, error) {
	start, end, err := vdsoOf("self")
	if err != nil {
		return 0, err
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		return 0, err
	}
	defer mem.Close()
	image, err := elf.NewFile(io.NewSectionReader(mem, start, end-start))
	if err != nil {
		return 0, fmt.Errorf("read the vDSO: %w", err)
	}
	symbols, err := image.DynamicSymbols()
	if err != nil {
		return 0, fmt.Errorf("read the vDSO: %w", err)
	}
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" {
			return int64(s.Value), nil
		}
	}
	return 0, fmt.Errorf("the vDSO has no __vdso_clock_gettime")
})
