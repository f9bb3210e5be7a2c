package splice_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/splice"
)

// childArg makes the test's own program a splicer.
const childArg = "-splicer"

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == childArg {
		err := splice.Serve(splice.ServeOptions{
			Host: os.NewFile(splice.HostFD, "host"), Version: os.Args[2], Path: os.Args[3],
			Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// host is a host's Splicer over processes that live in dir.
func host(t *testing.T, dir, version string) *splice.Splicer {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := splice.New(splice.Options{
		Dir: dir, Version: version, Logger: slog.New(slog.DiscardHandler),
		Start: splice.Command(exe, filepath.Join(dir, "log"), childArg, version),
	})
	t.Cleanup(s.Close)
	return s
}

// folder is where splicers live. They end with the test.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "splice-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host(t, dir, "cleanup").Quit(); err != nil {
			t.Error(err)
		}
		if log, _ := os.ReadFile(filepath.Join(dir, "log")); len(log) > 0 {
			t.Errorf("a splicer wrote: %s", log)
		}
		eventually(t, "no splicer is left", func() bool { return len(splicers(dir)) == 0 })
		os.RemoveAll(dir)
	})
	return dir
}

// splicers are the processes that serve dir.
func splicers(dir string) (pids []int) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		line, _ := os.ReadFile(path)
		if strings.Contains(string(line), dir+"/") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so: %s", what)
		}
	}
}

// pass sends a line from one end and reads it at the other.
func pass(t *testing.T, from, to *net.TCPConn, line string) {
	t.Helper()
	if _, err := from.Write([]byte(line)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != line {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestPairsOutliveTheirHost(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	first := host(t, dir, "1")
	a, b, pair := joinedBy(t, first, "tunnel/one")
	c, d, _ := joinedBy(t, first, "endpoint/two")
	pass(t, a, b, "before")
	first.Close()
	if o := wait(t, ending(pair)); !errors.Is(o.err, splice.ErrLost) {
		t.Errorf("the host that let go sees %v", o.err)
	}
	pass(t, b, a, "between")
	second := host(t, dir, "1")
	adopted, err := second.Adopted("tunnel/")
	if err != nil || len(adopted) != 1 || adopted[0].Label != "tunnel/one" {
		t.Fatalf("adopted %v, %v", adopted, err)
	}
	joinedBy(t, second, "tunnel/three")
	if n := len(splicers(dir)); n != 1 {
		t.Errorf("%d splicers, want the one that there was", n)
	}
	if err := second.Clear("endpoint/"); err != nil {
		t.Fatal(err)
	}
	for _, end := range []*net.TCPConn{c, d} {
		if _, err := end.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after Clear an end reads %v", err)
		}
	}
	pass(t, a, b, "after")
	infos, err := second.Pairs(t.Context())
	if err != nil || len(infos) != 2 {
		t.Errorf("pairs %v, %v", infos, err)
	}
	a.CloseWrite()
	b.CloseWrite()
	if o := wait(t, ending(adopted[0])); o != (outcome{11, 7, nil}) {
		t.Errorf("outcome %+v", o)
	}
}

func TestAnotherVersionTakesOver(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	old := host(t, dir, "1")
	a, b, pair := joinedBy(t, old, "x")
	next := host(t, dir, "2")
	joinedBy(t, next, "y")
	if n := len(splicers(dir)); n != 2 {
		t.Errorf("%d splicers, want the old one for its pair and a new one", n)
	}
	pass(t, a, b, "still there")
	a.CloseWrite()
	b.CloseWrite()
	if o := wait(t, ending(pair)); o.err != nil {
		t.Error(o.err)
	}
	eventually(t, "the old one ends with its last pair", func() bool { return len(splicers(dir)) == 1 })
}

func TestSplicerThatDiesIsReplaced(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	s := host(t, dir, "1")
	a, _, pair := joinedBy(t, s, "x")
	for _, pid := range splicers(dir) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	if o := wait(t, ending(pair)); !errors.Is(o.err, splice.ErrLost) {
		t.Errorf("err = %v", o.err)
	}
	if _, err := a.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("an end reads %v", err)
	}
	c, d, _ := joinedBy(t, s, "y")
	pass(t, c, d, "again")
}

// TestManyAtOnce moves random amounts in random pieces both ways through many pairs,
// with readers that dawdle, and compares sums.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	s := host(t, folder(t), "1")
	done := make(chan error, 200)
	for i := range 50 {
		a, b, pair := joinedBy(t, s, "x")
		rng := rand.New(rand.NewPCG(uint64(i), 1))
		for _, way := range [][2]*net.TCPConn{{a, b}, {b, a}} {
			n := 1 + rng.IntN(3<<20)
			go send(way[0], n, rand.New(rand.NewPCG(uint64(i), uint64(n))))
			go func() { done <- receive(way[1], n, rand.New(rand.NewPCG(uint64(i), uint64(n)))) }()
		}
		go func() { _, _, err := pair.Wait(); done <- err }()
	}
	for range 150 {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(60 * time.Second):
			t.Fatal("they hang")
		}
	}
}

// chunk is the next piece that both ends know.
func chunk(rng *rand.Rand, left int) []byte {
	p := make([]byte, min(left, 1+rng.IntN(100_000)))
	for i := 0; i < len(p); i += 64 {
		p[i] = byte(rng.Uint32())
	}
	return p
}

func send(c *net.TCPConn, n int, rng *rand.Rand) {
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	for n > 0 {
		p := chunk(rng, n)
		if _, err := c.Write(p); err != nil {
			return // the reader misses it
		}
		n -= len(p)
	}
	_ = c.CloseWrite()
}

func receive(c *net.TCPConn, n int, rng *rand.Rand) error {
	want, got, dawdle := sha256.New(), sha256.New(), rand.IntN(20)
	for left := n; left > 0; {
		p := chunk(rng, left)
		want.Write(p)
		left -= len(p)
	}
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	buf := make([]byte, 40_000)
	for count := 0; ; count++ {
		m, err := c.Read(buf)
		got.Write(buf[:m])
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if dawdle == 0 && count%10 == 0 {
			time.Sleep(10 * time.Millisecond)
		}
	}
	if string(want.Sum(nil)) != string(got.Sum(nil)) {
		return fmt.Errorf("of %d bytes something else arrived", n)
	}
	return nil
}

// TestSmallAfterLarge asks and answers on a connection that has just been busy.
func TestSmallAfterLarge(t *testing.T) {
	t.Parallel()
	a, b, pair := joinedBy(t, host(t, folder(t), "1"), "x")
	for range 20 {
		go a.Write(make([]byte, 2<<20))
		if _, err := io.CopyN(io.Discard, b, 2<<20); err != nil {
			t.Fatal(err)
		}
		pass(t, b, a, "a question")
		pass(t, a, b, "an answer")
	}
	a.CloseWrite()
	b.CloseWrite()
	wait(t, ending(pair))
}
