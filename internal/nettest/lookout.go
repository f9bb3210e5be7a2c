package nettest

import (
	"bytes"
	"net"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Lookout records the frames that come to an interface.
type Lookout struct {
	Where string

	mu     sync.Mutex
	frames [][]byte
}

// Watch records the frames that come to an interface of a namespace, until the test ends.
func Watch(t testing.TB, where, space, link string) *Lookout {
	t.Helper()
	l, fd := &Lookout{Where: where}, -1
	err := In(space, func() error {
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	})
	if err != nil {
		t.Fatalf("watch %s in %s: %v", link, space, err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-done; unix.Close(fd) })
	go func() {
		defer close(done)
		l.record(fd, stop)
	}()
	return l
}

func (l *Lookout) record(fd int, stop <-chan struct{}) {
	buf := make([]byte, 65536)
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if at, ok := from.(*unix.SockaddrLinklayer); err != nil || !ok || at.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		l.mu.Lock()
		l.frames = append(l.frames, bytes.Clone(buf[:n]))
		l.mu.Unlock()
	}
}

// Frames gives what came until now.
func (l *Lookout) Frames() [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.frames[:len(l.frames):len(l.frames)]
}

// Saw counts the frames that have a text in them.
func (l *Lookout) Saw(text string) (n int) {
	for _, f := range l.Frames() {
		if bytes.Contains(f, []byte(text)) {
			n++
		}
	}
	return n
}
