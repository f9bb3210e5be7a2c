package splice

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// linger is how long a splicer without a host and without a pair waits for either.
const linger = 10 * time.Second

// ServeOptions are the options of Serve.
type ServeOptions struct {
	// Host is the connection of the host that started this splicer. Required.
	Host *os.File
	// Path is where later hosts find it. Optional.
	Path string
	// Version tells hosts what program this is. Required.
	Version string
	Logger  *slog.Logger // Required
	// Shared says that the process does other things, too, and is the only host.
	Shared bool
}

// Serve is the splicer. It returns when a host told it to quit, or when it has had no
// host and no pair for a while.
func Serve(o ServeOptions) error {
	l, err := newLoop(!o.Shared)
	if err != nil {
		return err
	}
	s := &server{l: l, opts: o, pairs: map[uint64]*pair{}, hosts: map[*peer]struct{}{}}
	l.ring = s.consider
	defer s.close()
	fd, err := unix.FcntlInt(o.Host.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	_ = o.Host.Close()
	if err != nil {
		return fmt.Errorf("the host's connection: %w", err)
	}
	if o.Path != "" {
		if err := s.listen(); err != nil {
			_ = unix.Close(fd)
			return err
		}
	}
	s.greet(fd)
	return l.run()
}

// server is the splicer's side towards hosts.
type server struct {
	l       *loop
	opts    ServeOptions
	door    int // 0: not listening
	pairs   map[uint64]*pair
	hosts   map[*peer]struct{}
	leaving bool
}

func (s *server) listen() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	s.door = fd
	_ = os.Remove(s.opts.Path) // of a process that had our number before
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: s.opts.Path}); err != nil {
		return fmt.Errorf("bind %s: %w", s.opts.Path, err)
	}
	if err := unix.Listen(fd, 8); err != nil {
		return fmt.Errorf("listen on %s: %w", s.opts.Path, err)
	}
	_, err = s.l.watch(fd, unix.EPOLLIN, s)
	return err
}

// ready implements watcher: a host knocks.
func (s *server) ready(uint32) {
	fd, _, err := unix.Accept4(s.door, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err == nil {
		s.greet(fd)
	}
}

func (s *server) greet(fd int) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return
	}
	h := &peer{s: s, fd: fd}
	at, err := s.l.watch(fd, unix.EPOLLIN, h)
	if err != nil {
		s.opts.Logger.Error("a host can't be served", "error", err)
		_ = unix.Close(fd)
		return
	}
	h.at = at
	s.hosts[h] = struct{}{}
	h.say(message{Op: opHello, Version: s.opts.Version, Process: os.Getpid()})
	h.tell(0)
}

// consider ends a splicer that nobody needs.
func (s *server) consider() {
	if len(s.hosts) == 0 && len(s.pairs) == 0 || s.leaving && len(s.pairs) == 0 {
		s.l.quit = true
	}
}

// idle begins the wait for a host or a pair.
func (s *server) idle() {
	switch {
	case s.leaving:
		s.consider()
	case s.opts.Shared && len(s.hosts) == 0:
		s.l.quit = true
	case len(s.hosts) == 0 && len(s.pairs) == 0:
		s.l.alarm = s.l.now.Add(linger)
	}
}

func (s *server) do(from *peer, m message, fds []int) {
	if m.Op != opJoin || len(fds) != 2 {
		closeAll(fds)
	}
	switch m.Op {
	case opJoin:
		s.join(from, m, fds)
	case opBreak:
		if p := s.pairs[m.ID]; p != nil {
			p.fail(unix.ECONNABORTED)
		}
	case opClear:
		s.clear(m.Label)
	case opList:
		from.tell(m.ID)
	case opLeave:
		s.leaving = true
		s.idle()
	case opQuit:
		s.clear("")
		s.l.quit = true
	}
}

func (s *server) join(from *peer, m message, fds []int) {
	if len(fds) != 2 {
		from.say(message{Op: opEnded, ID: m.ID, Errno: unix.EBADF})
		return
	}
	p, err := join(s.l, m.ID, m.Label, [2]int(fds), s.over)
	if err != nil {
		s.opts.Logger.Error("two connections can't be joined", "label", m.Label, "error", err)
		from.say(message{Op: opEnded, ID: m.ID, Errno: errnoOf(err)})
		return
	}
	s.pairs[m.ID] = p
}

func (s *server) clear(prefix string) {
	for _, p := range s.pairs {
		if strings.HasPrefix(p.label, prefix) {
			p.fail(unix.ECONNABORTED)
		}
	}
}

// over tells every host; one that did not join the pair may have adopted it.
func (s *server) over(p *pair, err error) {
	delete(s.pairs, p.id)
	end := message{Op: opEnded, ID: p.id, Label: p.label, AToB: p.flows[0].moved, BToA: p.flows[1].moved, Errno: errnoOf(err)}
	for h := range s.hosts {
		h.say(end)
	}
	s.idle()
}

func (s *server) close() {
	s.clear("")
	for h := range s.hosts {
		h.leave()
	}
	if s.door != 0 {
		_ = unix.Close(s.door)
		_ = os.Remove(s.opts.Path)
	}
}
