package sockio

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// pair is two ends of a connection, both with quick calls.
func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := Listener{l}
	defer ln.Close()
	dialled, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a, b = Quick(dialled).(*Conn), accepted.(*Conn)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// TestEveryByteOnce sends writes of all sizes against a reader that is slow at times, so that the
// socket's buffer fills and a write has to wait in its middle.
func TestEveryByteOnce(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	if err := b.Socket.(*net.TCPConn).SetReadBuffer(16 << 10); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(want)
	sizes := rand.New(rand.NewPCG(1, 2))
	sent := make(chan error, 1)
	go func() {
		defer a.Socket.(*net.TCPConn).CloseWrite()
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 1+sizes.IntN(2*maxWrite))
			if w, err := a.Write(rest[:n]); err != nil || w != n {
				sent <- errors.Join(err, errors.New("short write"))
				return
			}
			rest = rest[n:]
		}
		sent <- nil
	}()
	var got bytes.Buffer
	for buf := make([]byte, 9<<10); ; {
		n, err := b.Read(buf)
		got.Write(buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if got.Len()%17 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes came, not the %d that were sent", got.Len(), len(want))
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	if n := a.ReadNow(make([]byte, 1)); n != 0 {
		t.Errorf("ReadNow took %d bytes of nothing", n)
	}
	_ = a.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err := a.Read(make([]byte, 1))
	if timeout := net.Error(nil); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("at the deadline: %v", err)
	}
	_ = a.SetReadDeadline(time.Time{})
	_ = b.SetLinger(0)
	b.Close()
	_, err = a.Read(make([]byte, 1))
	var op *net.OpError
	if !errors.Is(err, syscall.ECONNRESET) || !errors.As(err, &op) || op.Op != "read" {
		t.Errorf("after a reset: %v", err)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a write after a reset: %v", err)
	}
	a.Close()
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read after Close: %v", err)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write after Close: %v", err)
	}
}

func TestQuiet(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	if !a.Quiet() {
		t.Error("a new connection is not quiet")
	}
	if _, err := b.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); a.Quiet(); {
		if time.Now().After(end) {
			t.Fatal("a byte that has come is not seen")
		}
	}
	if n, err := a.Read(make([]byte, 8)); n != 1 || err != nil {
		t.Errorf("the byte was taken: %d, %v", n, err)
	}
	b.Close()
	for end := time.Now().Add(5 * time.Second); a.Quiet(); {
		if time.Now().After(end) {
			t.Fatal("the peer's end is not seen")
		}
	}
}

// TestCloseEndsAWaitingRead is what ends a parked connection.
func TestCloseEndsAWaitingRead(t *testing.T) {
	t.Parallel()
	a, _ := pair(t)
	ended := make(chan error, 1)
	go func() {
		_, err := a.Read(make([]byte, 1))
		ended <- err
	}()
	time.Sleep(10 * time.Millisecond) // either order is right
	a.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("Close does not end a read")
	}
}

func TestOthersPass(t *testing.T) {
	t.Parallel()
	p, q := net.Pipe()
	defer p.Close()
	defer q.Close()
	if got := Quick(p); got != p {
		t.Errorf("a pipe became %T", got)
	}
}
