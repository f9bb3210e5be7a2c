package oci

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// proc is a running process, held by a pidfd, so that its number can't come to mean
// another one.
type proc struct {
	pid int
	fd  *os.File
}

// openProc returns nil if there is no such process.
func openProc(pid int) *proc {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil
	}
	return &proc{pid, os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(pid))}
}

func (p *proc) close() { p.fd.Close() } // nothing is written to it

// ended reports whether the process has ended, reaped or not.
func (p *proc) ended() (over bool) {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return false
	}
	err = conn.Control(func(fd uintptr) { over = pollable(int(fd)) })
	return err == nil && over
}

// wait waits until the process has ended, for at most d if d is not negative, and
// reports whether it has.
func (p *proc) wait(ctx context.Context, d time.Duration) bool {
	var deadline time.Time
	if d >= 0 {
		deadline = time.Now().Add(d)
	}
	conn, err := p.fd.SyscallConn()
	if err != nil || p.fd.SetReadDeadline(deadline) != nil {
		return false
	}
	stop := context.AfterFunc(ctx, func() { _ = p.fd.SetReadDeadline(time.Unix(1, 0)) }) // it just worked
	defer stop()
	over := false
	err = conn.Read(func(fd uintptr) bool {
		over = pollable(int(fd))
		return over
	})
	return err == nil && over
}

func pollable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n > 0
		}
	}
}

func (p *proc) signal(sig unix.Signal) {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return
	}
	// It fails only for a process that is gone, and that is what signals here are for.
	_ = conn.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
}

// end asks the process to end, then makes it. The first process of a PID namespace does
// not get a signal that it has no handler for yet: it is asked until it has one, and
// then once, as a second SIGTERM may mean more than the first.
func (p *proc) end(ctx context.Context, grace time.Duration) {
	const again = 20 * time.Millisecond
	end := time.Now().Add(grace)
	for handled := false; !handled && ctx.Err() == nil && time.Now().Before(end); {
		handled = p.handles(unix.SIGTERM)
		p.signal(unix.SIGTERM)
		patience := time.Until(end)
		if !handled {
			patience = min(again, patience)
		}
		if p.wait(ctx, max(0, patience)) {
			return
		}
	}
	p.signal(unix.SIGKILL)
	p.wait(ctx, killTimeout)
}

// handles reports whether the process has a handler for a signal.
func (p *proc) handles(sig unix.Signal) bool {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/status")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(raw), "\nSigCgt:")
	mask, _, _ := strings.Cut(rest, "\n")
	caught, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
	return err == nil && caught&(1<<(sig-1)) != 0
}

// exitStatus returns how an ended process ended, if that can be learned: from /proc
// while it is a zombie, which lasts until this process reaps it if it is its child (see
// adoptOrphans); once another has reaped it, from the pidfd (Linux 6.15).
func (p *proc) exitStatus() (status unix.WaitStatus, ok bool) {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return 0, false
	}
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		err := conn.Control(func(fd uintptr) {
			if status, ok = zombieStatus(int(fd), p.pid); !ok {
				status, ok = reapedStatus(int(fd))
			}
			if ok {
				// If it became this process's child, nobody else will reap it.
				_ = unix.Waitid(unix.P_PIDFD, int(fd), nil, unix.WEXITED|unix.WNOHANG, nil) // else ECHILD
			}
		})
		if ok || err != nil {
			return status, ok
		}
	}
	return 0, false
}

// zombieStatus reads the last field of /proc/PID/stat, which root may see.
func zombieStatus(fd, pid int) (unix.WaitStatus, bool) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 50 || fields[0] != "Z" {
		return 0, false
	}
	code, err := strconv.Atoi(fields[49])
	// If the process can still be signalled the number was its own while it was read.
	return unix.WaitStatus(code), err == nil && unix.PidfdSendSignal(fd, 0, nil, 0) == nil
}

func reapedStatus(fd int) (unix.WaitStatus, bool) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	err := unix.IoctlPidfdInfo(fd, &info)
	return unix.WaitStatus(info.Exit_code), err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0
}

// waitExec waits until runc's own code in the sandbox has given way to the program, and
// reports whether the process is still there then. runc returns a moment before.
func (p *proc) waitExec(ctx context.Context) bool {
	for end := time.Now().Add(2 * time.Second); ctx.Err() == nil && time.Now().Before(end); time.Sleep(300 * time.Microsecond) {
		raw, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/cmdline")
		if err != nil || p.ended() {
			return false
		}
		// It is empty while a process is on its way out.
		if len(raw) > 0 && !bytes.HasSuffix(raw, []byte("\x00init\x00")) {
			return true
		}
	}
	return !p.ended()
}

// ready returns the process of a sandbox whose start was completed and that runs, or nil.
// The caller closes it.
func (r *Runtime) ready(id string) *proc {
	if !r.bundle(id).booted() {
		return nil
	}
	return r.find(id)
}

// find returns the process of a sandbox, however far its start came, or nil. The caller
// closes it.
func (r *Runtime) find(id string) *proc {
	pid := r.bundle(id).pid()
	if pid == 0 {
		return nil
	}
	p := openProc(pid)
	if p == nil {
		return nil
	}
	// The number may have been given to another process since: ask its cgroup, then
	// whether the one that was opened is still there to have been asked.
	ours := inCgroup(pid, r.cgroup(r.container(id)))
	if ours && !p.ended() {
		return p
	}
	if ours {
		p.reap()
	}
	p.close()
	return nil
}

func inCgroup(pid int, path string) bool {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(raw)) {
		if strings.HasSuffix(strings.TrimSpace(line), path) {
			return true
		}
	}
	return false
}
