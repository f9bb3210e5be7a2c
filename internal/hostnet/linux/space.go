package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// threadNS is the network namespace of the calling thread.
const threadNS = "/proc/thread-self/ns/net"

// nsfsMagic is the file-system type of a namespace that is mounted on a file.
const nsfsMagic = 0x6e736673

// netlinkTimeout bounds each netlink request.
const netlinkTimeout = 10 * time.Second

// space is a network namespace that this process holds open.
type space struct {
	name string // below netnsDir; "" for the host's own
	path string
	file *os.File
	nl   *netlink.Handle
}

// inside runs fn in a thread of the namespace ns. The thread ends with its goroutine
// if it cannot be brought back: no other goroutine ever runs in a foreign namespace.
func inside(ns *os.File, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- swapped(func() error { return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET) }, fn)
	}()
	return <-done
}

// insideNew is inside for a namespace that does not exist yet.
func insideNew(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- swapped(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, fn)
	}()
	return <-done
}

// swapped must run on a locked thread; it unlocks it only once it is back.
func swapped(enter, fn func() error) error {
	back, err := os.Open(threadNS)
	if err != nil {
		return fmt.Errorf("opening the thread's namespace: %w", err)
	}
	defer back.Close()
	if err := enter(); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering a network namespace: %w", err)
	}
	err = fn()
	if unix.Setns(int(back.Fd()), unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	}
	return err
}

// openHost opens the namespace that the process runs in, or another by its path.
func openHost(path string) (*space, error) {
	if path == "" {
		path = threadNS // /proc/self is the first thread's, which may be elsewhere at the moment
	}
	return openPath("", path)
}

// openSpace opens a named namespace. A file without a namespace, which a crash can
// leave, is reported as not existing.
func openSpace(name string) (*space, error) {
	path := filepath.Join(netnsDir, name)
	if !isNamespace(path) {
		return nil, fmt.Errorf("%s: %w", path, os.ErrNotExist)
	}
	return openPath(name, path)
}

func openPath(name, path string) (*space, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	s := &space{name: name, path: path, file: f}
	err = inside(f, func() (err error) {
		s.nl, err = newHandle()
		return err
	})
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("opening namespace %s: %w", path, err)
	}
	return s, nil
}

func newHandle() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == nsfsMagic
}

// ensureSpace opens a namespace or makes it. Its sysctl values are written before it
// gets its name, so that one that can be found is never without them.
func ensureSpace(name, why string, values []sysctl) (s *space, made bool, err error) {
	s, err = openSpace(name)
	if err == nil {
		err = s.assertBase(why, values)
	} else if errors.Is(err, os.ErrNotExist) {
		made = true
		s, err = makeSpace(name, why, values)
	}
	if err != nil {
		if s != nil {
			s.close()
		}
		return nil, false, fmt.Errorf("namespace %s: %w", name, err)
	}
	return s, made, nil
}

func makeSpace(name, why string, values []sysctl) (*space, error) {
	s := &space{name: name, path: filepath.Join(netnsDir, name)}
	err := insideNew(func() (err error) {
		if s.file, err = os.Open(threadNS); err != nil {
			return err
		}
		if s.nl, err = newHandle(); err != nil {
			return err
		}
		if err = writeAll(values); err != nil {
			return err
		}
		if err = s.loopbackUp(why); err != nil {
			return err
		}
		return bindName(threadNS, s.path)
	})
	return s, err
}

// assertBase repeats what makeSpace did to a namespace.
func (s *space) assertBase(why string, values []sysctl) error {
	if err := s.do(func() error { return writeAll(values) }); err != nil {
		return err
	}
	return s.loopbackUp(why)
}

// loopbackUp also writes what the namespace is for on its loopback interface, where
// Inventory finds it whichever process made it.
func (s *space) loopbackUp(why string) error {
	lo, err := s.nl.LinkByName("lo")
	if err != nil {
		return err
	}
	if lo.Attrs().Alias != why {
		if err := s.nl.LinkSetAlias(lo, why); err != nil {
			return err
		}
	}
	if lo.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	return s.nl.LinkSetUp(lo)
}

// bindName gives a namespace a name that outlives the process.
func bindName(ns, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(ns, path, "", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		return fmt.Errorf("mounting the namespace on %s: %w", path, err)
	}
	return nil
}

// keepName gives the namespace its name again if somebody took it away.
func (s *space) keepName() error {
	var have, want unix.Stat_t
	if err := unix.Fstat(int(s.file.Fd()), &want); err != nil {
		return err
	}
	if unix.Stat(s.path, &have) == nil && have.Ino == want.Ino && have.Dev == want.Dev {
		return nil
	}
	if isNamespace(s.path) {
		if err := dropName(s.name); err != nil {
			return err
		}
	}
	return bindName(fmt.Sprintf("/proc/self/fd/%d", s.file.Fd()), s.path)
}

// dropName takes a namespace's name away. The kernel ends the namespace, and every
// interface in it, when no process and no socket is left in it.
func dropName(name string) error {
	path := filepath.Join(netnsDir, name)
	for isNamespace(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmounting %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// namespaces lists the names below netnsDir that begin with prefix.
func namespaces(prefix string) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// prepareDir makes netnsDir a shared mount, as ip-netns(8) does and under the same
// lock, so that a name dropped here is dropped in every mount namespace.
func prepareDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(netnsDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	if err := unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
}

// do runs fn in a thread of the namespace.
func (s *space) do(fn func() error) error { return inside(s.file, fn) }

func (s *space) close() {
	if s.nl != nil {
		s.nl.Close()
	}
	if s.file != nil {
		s.file.Close()
	}
}

// listenTCP opens a listening socket in the namespace; it may be used from any thread.
func (s *space) listenTCP(ctx context.Context, addr string) (l *net.TCPListener, err error) {
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false) // splice(2) and the members' own rules know plain TCP only
	err = s.do(func() error {
		listener, err := lc.Listen(ctx, "tcp4", addr)
		if err == nil {
			l = listener.(*net.TCPListener)
		}
		return err
	})
	return l, err
}

// listenUDP opens a UDP socket in the namespace.
func (s *space) listenUDP(ctx context.Context, addr string) (pc net.PacketConn, err error) {
	err = s.do(func() (err error) {
		pc, err = (&net.ListenConfig{}).ListenPacket(ctx, "udp4", addr)
		return err
	})
	return pc, err
}
