package splice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// talkTime bounds a message to a splicer and its answer.
const talkTime = 5 * time.Second

// Options of New.
type Options struct {
	// Dir is where splicers have their sockets; only root may enter it. Required.
	Dir string
	// Start starts a splicer that serves the host at the other end of host, and later
	// ones at path. Required.
	Start func(host *os.File, path string) error
	// Version is that of the splicers that Start starts. Others get no new pairs. Required.
	Version string
	Logger  *slog.Logger // Required
}

// Splicer is a host's hold on the processes that join its connections: the one that
// gets new pairs, and those of earlier programs that still have some.
type Splicer struct {
	opts Options

	mu      sync.Mutex
	links   map[*link]struct{}
	current *link
	opening bool // Open has not looked for splicers that run yet
	closed  bool
	next    uint64
	readers sync.WaitGroup
}

// Pair is two joined connections.
type Pair struct {
	Label string

	id   uint64
	link *link
	done chan struct{}
	// Valid once done is closed.
	aToB, bToA int64
	err        error
}

// Info is a pair that is open.
type Info struct {
	Label      string
	AToB, BToA int64 // bytes so far
}

// ErrLost is the end of a pair whose splicer died.
var ErrLost = errors.New("the process that joined the connections ended")

// New makes a Splicer. It starts nothing.
func New(o Options) *Splicer {
	return &Splicer{opts: o, links: map[*link]struct{}{}, next: uint64(rand.Uint32()) << 32, opening: true}
}

// Join joins two connections, which are not the caller's any more, whatever it returns.
// The label says what they are for; it need not be unique.
func (s *Splicer) Join(label string, a, b *net.TCPConn) (*Pair, error) {
	defer func() { _, _ = a.Close(), b.Close() }() // the splicer has its own descriptors
	if len(label) > maxLabel {
		return nil, errs.New(errs.Internal, "splice: a label of %d bytes", len(label))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.hand(label, a, b)
	if err == nil || s.closed {
		return p, err
	}
	return s.hand(label, a, b) // a splicer that died just now has a successor
}

// hand gives two connections to a splicer. s.mu is held.
func (s *Splicer) hand(label string, a, b *net.TCPConn) (*Pair, error) {
	k, err := s.ensure()
	if err != nil {
		return nil, err
	}
	s.next++
	p := &Pair{Label: label, id: s.next, link: k, done: make(chan struct{})}
	if err := k.send(message{Op: opJoin, ID: p.id, Label: label}, a, b); err != nil {
		s.current = nil
		return nil, err
	}
	k.pairs[p.id] = p
	return p, nil
}

// Wait returns when the pair is over: the bytes that went each way, and nil if both
// directions ended with an orderly close, else the error that ended the first one.
func (p *Pair) Wait() (aToB, bToA int64, err error) {
	<-p.done
	return p.aToB, p.bToA, p.err
}

// Done is closed when the pair is over.
func (p *Pair) Done() <-chan struct{} { return p.done }

// Break resets both connections. It does not wait.
func (p *Pair) Break() {
	select {
	case <-p.done:
	default:
		p.link.tell(message{Op: opBreak, ID: p.id})
	}
}

// Adopted returns the pairs, of labels that begin with prefix, that an earlier host
// joined and that go on.
func (s *Splicer) Adopted(prefix string) ([]*Pair, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return nil, err
	}
	var out []*Pair
	for k := range s.links {
		for _, p := range k.pairs {
			if p.id>>32 != s.next>>32 && strings.HasPrefix(p.Label, prefix) {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// Clear resets every pair of a label that begins with prefix, adopted ones as well.
func (s *Splicer) Clear(prefix string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return err
	}
	for k := range s.links {
		k.tell(message{Op: opClear, Label: prefix})
	}
	return nil
}

// Pairs lists the open pairs with what has passed through them.
func (s *Splicer) Pairs(ctx context.Context) ([]Info, error) {
	s.mu.Lock()
	if err := s.open(); err != nil {
		s.mu.Unlock()
		return nil, err
	}
	var asked []*question
	for k := range s.links {
		s.next++
		asked = append(asked, k.ask(s.next))
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, talkTime)
	defer cancel()
	var out []Info
	for _, q := range asked {
		select {
		case <-q.done:
			out = append(out, q.pairs...)
		case <-ctx.Done():
			return nil, errs.New(errs.Unavailable, "the process that joins connections does not answer: %w", ctx.Err())
		}
	}
	return out, nil
}

// Processes returns the splicers that there are.
func (s *Splicer) Processes() (pids []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.links {
		pids = append(pids, k.pid)
	}
	slices.Sort(pids)
	return pids
}

// Close lets go of the splicers, which go on with what they have.
func (s *Splicer) Close() {
	s.mu.Lock()
	s.closed = true
	for k := range s.links {
		_ = k.conn.Close()
	}
	s.mu.Unlock()
	s.readers.Wait()
}

// Quit ends every splicer and every pair, and waits for it.
func (s *Splicer) Quit() error {
	s.mu.Lock()
	err := s.open()
	s.closed = true
	var pids []int
	for k := range s.links {
		k.tell(message{Op: opQuit})
		_ = k.conn.SetReadDeadline(time.Now().Add(talkTime))
		pids = append(pids, k.pid)
	}
	s.mu.Unlock()
	s.readers.Wait()
	for _, pid := range pids {
		err = errors.Join(err, awaitEnd(pid))
	}
	return err
}

// awaitEnd waits for the end of a splicer that has closed its connections.
func awaitEnd(pid int) error {
	if pid == os.Getpid() {
		return nil
	}
	for deadline := time.Now().Add(talkTime); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return nil
		}
	}
	return errs.New(errs.Unavailable, "process %d, which joins connections, does not end", pid).WithHint("kill %d", pid)
}

// open finds the splicers that run already. s.mu is held.
func (s *Splicer) open() error {
	if s.closed {
		return errs.New(errs.Unavailable, "the host is ending")
	}
	if !s.opening {
		return nil
	}
	paths, err := filepath.Glob(filepath.Join(s.opts.Dir, "*.sock"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := s.connect(path); err != nil {
			return err
		}
	}
	s.opening = false
	return nil
}

// connect takes up the splicer behind a socket. One that nobody listens on is removed.
func (s *Splicer) connect(path string) error {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		_ = os.Remove(path)
		return nil
	}
	if err != nil {
		return fmt.Errorf("connect to %s: %w", path, err)
	}
	err = s.add(conn)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return nil // it was just ending
	}
	return err
}

// add greets a splicer and takes over its pairs. s.mu is held.
func (s *Splicer) add(conn *net.UnixConn) error {
	k := &link{s: s, conn: conn, pairs: map[uint64]*Pair{}, asked: map[uint64]*question{}}
	version, err := k.greet()
	if err != nil {
		_ = conn.Close()
		return errs.New(errs.Unavailable, "the process that joins connections does not answer: %w", err)
	}
	s.links[k] = struct{}{}
	s.readers.Go(k.read)
	if version == s.opts.Version {
		s.current = k
	} else {
		k.tell(message{Op: opLeave})
	}
	return nil
}

// ensure returns the splicer for new pairs, and starts it if there is none. s.mu is held.
func (s *Splicer) ensure() (*link, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	if s.current != nil {
		return s.current, nil
	}
	near, far, err := socketPair()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(s.opts.Dir, fmt.Sprintf("%d-%d.sock", os.Getpid(), time.Now().UnixNano()))
	err = s.opts.Start(far, path)
	_ = far.Close()
	if err != nil {
		_ = near.Close()
		return nil, errs.New(errs.Unavailable, "the process that joins connections can't be started: %w", err)
	}
	if err := s.add(near); err != nil {
		return nil, err
	}
	return s.current, nil
}

// socketPair makes a connection to a splicer that is to be started.
func socketPair() (near *net.UnixConn, far *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	far = os.NewFile(uintptr(fds[1]), "splicer")
	file := os.NewFile(uintptr(fds[0]), "splicer")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		_ = far.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return conn.(*net.UnixConn), far, nil
}
