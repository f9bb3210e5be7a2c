package splice

import (
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// tick is the beat of paced flows: long enough for tens of kilobytes to gather at
	// the rates that make a flow paced, short against anything that waits for the last byte.
	tick = 400 * time.Microsecond
	// attentive is how long after an event the thread waits without telling the
	// scheduler of Go, which costs more than the wait itself when another event follows.
	attentive = 5 * time.Millisecond
)

// watcher is told what happened to a descriptor.
type watcher interface{ ready(events uint32) }

// slot is a descriptor in the epoll set. Its number and turn travel with the events:
// one of a descriptor that was closed meanwhile is not taken for its successor's.
type slot struct {
	w    watcher
	turn int32
}

// loop is an epoll set and its thread. All its methods belong to that thread.
type loop struct {
	epfd  int
	slots []slot
	free  []int32
	pipes pipes
	paced map[*flow]struct{}
	due   time.Time // of the next tick
	now   time.Time // when the events being handled came
	alone bool      // the process has nothing else to run
	alarm time.Time // when to call ring; zero: never
	ring  func()
	quit  bool
}

func newLoop(alone bool) (*loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return &loop{epfd: epfd, paced: map[*flow]struct{}{}, alone: alone, now: time.Now()}, nil
}

// watch adds a descriptor and returns its slot.
func (l *loop) watch(fd int, events uint32, w watcher) (int32, error) {
	var at int32
	if n := len(l.free); n > 0 {
		at, l.free = l.free[n-1], l.free[:n-1]
	} else {
		at = int32(len(l.slots))
		l.slots = append(l.slots, slot{})
	}
	l.slots[at].w = w
	ev := l.event(at, events)
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		l.release(at)
		return 0, fmt.Errorf("epoll: %w", err)
	}
	return at, nil
}

// event carries slot and turn where the kernel keeps a word of 64 bits.
func (l *loop) event(at int32, events uint32) unix.EpollEvent {
	ev := unix.EpollEvent{Events: events, Fd: at}
	ev.Pad = l.slots[at].turn
	return ev
}

func (l *loop) change(fd int, at int32, events uint32) error {
	ev := l.event(at, events)
	return unix.EpollCtl(l.epfd, unix.EPOLL_CTL_MOD, fd, &ev)
}

// forget takes a descriptor out. It can't fail for one that was put in.
func (l *loop) forget(fd int, at int32) {
	_ = unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, fd, nil)
	l.release(at)
}

func (l *loop) release(at int32) {
	l.slots[at].w = nil
	l.slots[at].turn++
	l.free = append(l.free, at)
}

// run handles events until quit is set.
func (l *loop) run() error {
	defer l.close()
	events := make([]unix.EpollEvent, 256)
	last := time.Now()
	for !l.quit {
		n, err := l.wait(events, time.Since(last) < attentive)
		if err != nil {
			return err
		}
		l.now = time.Now()
		if n > 0 {
			last = l.now
		}
		for _, ev := range events[:n] {
			if s := l.slots[ev.Fd]; s.w != nil && s.turn == ev.Pad {
				s.w.ready(ev.Events)
			}
		}
		l.beat()
		if !l.alarm.IsZero() && !l.now.Before(l.alarm) {
			l.alarm = time.Time{}
			l.ring()
		}
	}
	return nil
}

// beat moves what has gathered for the paced flows.
func (l *loop) beat() {
	if len(l.paced) == 0 || l.now.Before(l.due) {
		return
	}
	l.due = l.now.Add(tick)
	for f := range l.paced {
		f.beat()
	}
}

// pace makes a flow wait for the beat.
func (l *loop) pace(f *flow) {
	if len(l.paced) == 0 {
		l.due = l.now.Add(tick)
	}
	l.paced[f] = struct{}{}
}

// wait returns the events that came, none at a tick or the alarm.
func (l *loop) wait(events []unix.EpollEvent, lively bool) (int, error) {
	var limit *unix.Timespec
	within := func(d time.Duration) {
		if ts := unix.NsecToTimespec(int64(max(d, 0))); limit == nil || ts.Nano() < limit.Nano() {
			limit = &ts
		}
	}
	if len(l.paced) > 0 {
		within(time.Until(l.due))
	} else if lively && l.alone {
		within(attentive)
	}
	brief := limit != nil
	if !l.alarm.IsZero() {
		within(time.Until(l.alarm))
	}
	n, errno := l.epoll(events, limit, brief)
	switch errno {
	case 0:
		return n, nil
	case unix.EINTR:
		return 0, nil
	}
	return 0, fmt.Errorf("epoll: %w", errno)
}

// epoll is epoll_pwait2, which has a time-out below a millisecond. A brief wait of a
// thread that is alone is a raw system call: handing the processor to the scheduler of
// Go and back would wake another thread each time.
func (l *loop) epoll(events []unix.EpollEvent, limit *unix.Timespec, brief bool) (int, syscall.Errno) {
	first, count := uintptr(unsafe.Pointer(&events[0])), uintptr(len(events))
	if brief && l.alone {
		n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(l.epfd), first, count, uintptr(unsafe.Pointer(limit)), 0, 0)
		return int(n), errno
	}
	n, _, errno := syscall.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(l.epfd), first, count, uintptr(unsafe.Pointer(limit)), 0, 0)
	return int(n), errno
}

// move is splice(2). The descriptors are non-blocking, so that a thread that is alone
// need not tell the scheduler of Go.
func (l *loop) move(from, to, size int) (int, error) {
	const flags = unix.SPLICE_F_NONBLOCK | unix.SPLICE_F_MOVE
	for {
		var n uintptr
		var errno syscall.Errno
		if l.alone {
			n, _, errno = syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(size), flags)
		} else {
			n, _, errno = syscall.Syscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(size), flags)
		}
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

func (l *loop) close() {
	l.pipes.close()
	_ = unix.Close(l.epfd)
}
