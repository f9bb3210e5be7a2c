package splice_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/splice"
)

const patience = 10 * time.Second

// tcpPair returns the two ends of a TCP connection over loopback.
func tcpPair(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	near = c.(*net.TCPConn)
	if far, err = ln.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*net.TCPConn{near, far} {
		_ = c.SetDeadline(time.Now().Add(patience))
		t.Cleanup(func() { c.Close() })
	}
	return near, far
}

type outcome struct {
	aToB, bToA int64
	err        error
}

// joined returns two far ends whose near ends are joined, and the outcome.
func joined(t testing.TB) (a, b *net.TCPConn, done <-chan outcome) {
	t.Helper()
	a, b, pair := joinedBy(t, local(t), "test")
	return a, b, ending(pair)
}

// local is a splicer in this process.
func local(t testing.TB) *splice.Splicer {
	t.Helper()
	s := splice.Local(slog.New(slog.DiscardHandler))
	t.Cleanup(s.Close)
	return s
}

func joinedBy(t testing.TB, s *splice.Splicer, label string) (a, b *net.TCPConn, pair *splice.Pair) {
	t.Helper()
	nearA, a := tcpPair(t)
	nearB, b := tcpPair(t)
	pair, err := s.Join(label, nearA, nearB)
	if err != nil {
		t.Fatal(err)
	}
	return a, b, pair
}

// ending gives a pair's outcome when it is over.
func ending(p *splice.Pair) <-chan outcome {
	ch := make(chan outcome, 1)
	go func() {
		x, y, err := p.Wait()
		ch <- outcome{x, y, err}
	}()
	return ch
}

func wait(t *testing.T, done <-chan outcome) outcome {
	t.Helper()
	select {
	case o := <-done:
		return o
	case <-time.After(patience):
		t.Fatal("the pair does not end")
		return outcome{}
	}
}

func TestBytesBothWaysAndCounts(t *testing.T) {
	t.Parallel()
	a, b, done := joined(t)
	up, down := make([]byte, 3<<20), make([]byte, 1<<20)
	rand.Read(up)
	rand.Read(down)
	go func() { a.Write(up); a.CloseWrite() }()
	go func() { b.Write(down); b.CloseWrite() }()
	gotDown := make(chan []byte, 1)
	go func() { x, _ := io.ReadAll(a); gotDown <- x }()
	gotUp, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(gotUp, up) {
		t.Errorf("a→b: %d bytes of %d, err %v", len(gotUp), len(up), err)
	}
	if got := <-gotDown; !bytes.Equal(got, down) {
		t.Errorf("b→a: %d bytes of %d", len(got), len(down))
	}
	o := wait(t, done)
	if o.err != nil || o.aToB != int64(len(up)) || o.bToA != int64(len(down)) {
		t.Errorf("outcome %+v, want %d, %d, nil", o, len(up), len(down))
	}
}

func TestHalfClosePassesAndOtherDirectionLives(t *testing.T) {
	t.Parallel()
	a, b, done := joined(t)
	a.Write([]byte("question"))
	a.CloseWrite()
	q, err := io.ReadAll(b) // returns only when the half-close has passed
	if err != nil || string(q) != "question" {
		t.Fatalf("b read %q, %v", q, err)
	}
	b.Write([]byte("answer"))
	b.CloseWrite()
	if ans, err := io.ReadAll(a); err != nil || string(ans) != "answer" {
		t.Fatalf("a read %q, %v", ans, err)
	}
	if o := wait(t, done); o.err != nil {
		t.Errorf("err = %v, want nil", o.err)
	}
}

// reset makes the peer see a reset.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

func TestResetBecomesReset(t *testing.T) {
	t.Parallel()
	a, b, done := joined(t)
	a.Write([]byte("x"))
	io.ReadFull(b, make([]byte, 1))
	reset(a)
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("b reads %v, want a reset: an end could be taken for the whole", err)
	}
	if o := wait(t, done); !errors.Is(o.err, syscall.ECONNRESET) {
		t.Errorf("err = %v, want a reset", o.err)
	}
}

func TestResetAfterHalfCloseIsNoticedWhileTheOtherSideIsSilent(t *testing.T) {
	t.Parallel()
	a, b, done := joined(t)
	a.CloseWrite()
	if _, err := b.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("b reads %v, want the half-close", err)
	}
	reset(a)
	if o := wait(t, done); o.err == nil {
		t.Error("err = nil, want the reset")
	}
	if err := writeUntilError(b); err == nil {
		t.Error("b can still write after the reset of a")
	}
}

func writeUntilError(c *net.TCPConn) error {
	for range 100 {
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

func TestResetOfAStalledReaderFreesTheWriter(t *testing.T) {
	t.Parallel()
	a, b, done := joined(t)
	fail := make(chan error, 1)
	go func() {
		buf := make([]byte, 1<<20)
		for {
			if _, err := b.Write(buf); err != nil {
				fail <- err
				return
			}
		}
	}()
	time.Sleep(100 * time.Millisecond) // every buffer on the way fills; a reads nothing
	reset(a)
	select {
	case err := <-fail:
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the writer was not freed")
		}
	case <-time.After(patience):
		t.Error("the writer hangs")
	}
	wait(t, done)
}

func TestBreakEndsIt(t *testing.T) {
	t.Parallel()
	a, b, pair := joinedBy(t, local(t), "test")
	a.Write([]byte("x"))
	io.ReadFull(b, make([]byte, 1))
	pair.Break()
	if o := wait(t, ending(pair)); !errors.Is(o.err, syscall.ECONNABORTED) {
		t.Errorf("err = %v, want that it was broken", o.err)
	}
	for _, end := range []*net.TCPConn{a, b} {
		if _, err := end.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("an end reads %v, want a reset", err)
		}
	}
}

// TestKernelMovesTheBytes holds the point of the package: with strace it sees
// splice(2) and no read or write of the payload.
func TestKernelMovesTheBytes(t *testing.T) {
	if os.Getenv("SPLICE_TEST_CHILD") != "" {
		transfer(t, 8<<20)
		return
	}
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("strace is not installed")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("strace", "-f", "-c", "-e", "trace=splice", exe, "-test.run=^TestKernelMovesTheBytes$")
	cmd.Env = append(os.Environ(), "SPLICE_TEST_CHILD=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Skipf("strace can't run here: %v", err)
	}
	if !strings.Contains(string(out), "splice") {
		t.Errorf("no splice(2) in:\n%s", out)
	}
}

func transfer(t testing.TB, n int64) {
	a, b, _ := joined(t)
	go func() { io.CopyN(a, zeros{}, n); a.CloseWrite() }()
	if got, err := io.Copy(io.Discard, b); err != nil || got != n {
		t.Fatalf("%d bytes of %d, %v", got, n, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
