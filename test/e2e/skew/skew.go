// Package skew gives programs a wall clock of their own, which a test may set at any time
// while they run: a machine with a wrong clock, of which the kernel has only one.
//
// A program starts unmodified, under a seccomp filter that asks this process to answer
// clock_gettime(CLOCK_REALTIME); what it starts in turn, containers among them, inherits the
// filter. The vDSO, which would answer without any system call, is made to make one: each
// process's as its Go runtime starts, which the filter notices by sched_getaffinity. The
// monotonic clock stays what it is, as on a machine whose clock is set.
//
// Linux on amd64 only, as root. TestMain of a package that uses it calls Main first.
package skew

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Clock is the clock of one machine: of every program that was started on it.
type Clock struct {
	offset  atomic.Int64
	answers atomic.Int64

	mu      sync.Mutex
	problem error
	wg      sync.WaitGroup
}

// Set sets the clock to the true time and an offset.
func (c *Clock) Set(offset time.Duration) { c.offset.Store(int64(offset)) }

// Offset is what Set was called with last.
func (c *Clock) Offset() time.Duration { return time.Duration(c.offset.Load()) }

// Now is the time by this clock.
func (c *Clock) Now() time.Time { return time.Now().Add(c.Offset()) }

// Answers is how often a program has asked for the time.
func (c *Clock) Answers() int64 { return c.answers.Load() }

// Wait waits until every program on this clock has ended, and returns what went wrong with
// answering them.
func (c *Clock) Wait() error {
	c.wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.problem
}

func (c *Clock) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.problem == nil {
		c.problem = err
	}
}

// programEnv tells this binary, started anew, which program it becomes.
const programEnv = "SLUICE_TEST_SKEW_PROGRAM"

// Start starts a command on the clock, in the place of its own Start.
func (c *Clock) Start(cmd *exec.Cmd) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if len(cmd.ExtraFiles) > 0 {
		return errors.New("skew: a command with extra files can't be started on a clock")
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer ours.Close()
	defer theirs.Close()
	cmd.Env = append(cmd.Environ(), programEnv+"="+cmd.Path)
	cmd.Path, cmd.ExtraFiles = self, []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		return err
	}
	theirs.Close()
	listener, err := receive(ours)
	if err != nil {
		_ = cmd.Process.Kill()
		return fmt.Errorf("skew: %s installed no filter: %w", cmd.Path, err)
	}
	c.wg.Go(func() {
		var both sync.WaitGroup
		for range 2 { // while one is being scheduled the other answers
			both.Go(func() { c.supervise(listener) })
		}
		both.Wait()
		unix.Close(listener)
	})
	_, err = ours.Write([]byte{0}) // from now on somebody answers
	return err
}

func socketPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "skew"), os.NewFile(uintptr(fds[1]), "skew")
	defer near.Close()
	conn, err := net.FileConn(near)
	if err != nil {
		far.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), far, nil
}

// receive takes the descriptor that notifications are read from.
func receive(conn *net.UnixConn) (int, error) {
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return -1, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return -1, fmt.Errorf("%d control messages: %w", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("%d descriptors: %w", len(fds), err)
	}
	unix.CloseOnExec(fds[0])
	return fds[0], nil
}

// supervise answers the notifications of a filter until no process is under it any more.
func (c *Clock) supervise(listener int) {
	patched := &vdso{}
	for {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			c.failed(fmt.Errorf("poll: %w", err))
			return
		}
		if fds[0].Revents&unix.POLLHUP != 0 {
			return
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			continue
		}
		asked, err := nextNotification(listener)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINTR):
			continue // who asked has ended, or asks anew after a signal
		case err != nil:
			c.failed(fmt.Errorf("receive a notification: %w", err))
			return
		}
		answer := response{id: asked.id}
		if int(asked.nr) == unix.SYS_CLOCK_GETTIME {
			err = c.tell(asked)
		} else {
			answer.flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
			err = patched.patch(int(asked.pid))
		}
		if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, os.ErrNotExist) {
			c.failed(err)
		}
		if err != nil {
			answer.flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE // the true time, for want of the other
		}
		_ = answer.send(listener) // who asked may have ended meanwhile
	}
}

// tell writes the time to where a process wants it.
func (c *Clock) tell(asked notification) error {
	c.answers.Add(1)
	now := c.Now()
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:8], uint64(now.Unix()))
	binary.LittleEndian.PutUint64(b[8:], uint64(now.Nanosecond()))
	local := []unix.Iovec{{Base: &b[0], Len: 16}}
	remote := []unix.RemoteIovec{{Base: uintptr(asked.args[1]), Len: 16}}
	if _, err := unix.ProcessVMWritev(int(asked.pid), local, remote, 0); err != nil {
		return fmt.Errorf("tell thread %d the time: %w", asked.pid, err)
	}
	return nil
}

// Main turns this process into the program that Start wants, if it was started for that.
func Main() {
	program := os.Getenv(programEnv)
	if program == "" {
		return
	}
	if err := become(program); err != nil {
		fmt.Fprintln(os.Stderr, "skew:", err)
		os.Exit(125)
	}
}

// become installs the filter, hands over its listener and executes the program. The caller
// runs on the process's first thread, since exec keeps only the filter of the thread that
// calls it.
func become(program string) error {
	const socket = 3
	listener, err := install()
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(socket, []byte{0}, unix.UnixRights(listener), nil, 0); err != nil {
		return fmt.Errorf("hand over the listener: %w", err)
	}
	if _, err := unix.Read(socket, make([]byte, 1)); err != nil {
		return fmt.Errorf("wait for the supervisor: %w", err)
	}
	unix.Close(listener)
	unix.Close(socket)
	if err := os.Unsetenv(programEnv); err != nil {
		return err
	}
	return syscall.Exec(program, os.Args, os.Environ())
}
