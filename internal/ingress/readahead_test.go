package ingress

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/sockio"
)

// pair is a TCP connection: the reading side, reading ahead, and its peer.
func pair(t *testing.T) (*aheadConn, *net.TCPConn) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	peer, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	conn, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	quick, err := sockio.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return &aheadConn{Conn: quick}, peer.(*net.TCPConn)
}

func TestReadAheadGivesEveryByteOnce(t *testing.T) {
	t.Parallel()
	c, peer := pair(t)
	want := make([]byte, 8<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(want)
	rnd := rand.New(rand.NewPCG(1, 2))
	go func() {
		defer peer.Close()
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 1+rnd.IntN(300<<10))
			if _, err := peer.Write(rest[:n]); err != nil {
				return // the reader misses it
			}
			rest = rest[n:]
		}
	}()
	var got bytes.Buffer
	ahead := 0
	sizes := rand.New(rand.NewPCG(3, 4))
	for {
		p := make([]byte, 1+sizes.IntN(32<<10))
		n, err := c.Read(p)
		got.Write(p[:n])
		if c.buf != nil {
			ahead++
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes came that are not the %d that were sent", got.Len(), len(want))
	}
	if ahead == 0 {
		t.Error("nothing was read ahead")
	}
}

// TestWaitingHoldsNoBuffer reads exactly what came: nothing is known of what comes next.
func TestWaitingHoldsNoBuffer(t *testing.T) {
	t.Parallel()
	c, peer := pair(t)
	p := make([]byte, 1000)
	for range 3 {
		if _, err := peer.Write(p); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, p); err != nil {
			t.Fatal(err)
		}
		if c.buf != nil {
			t.Fatal("an idle connection holds a buffer")
		}
	}
	if err := c.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(p); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("err = %v, want the deadline's", err)
	}
}

func TestReadAheadMeetsTheEnd(t *testing.T) {
	t.Parallel()
	c, peer := pair(t)
	if _, err := peer.Write(make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	peer.SetLinger(0)
	if got, err := io.ReadAll(io.LimitReader(c, 5000)); err != nil || len(got) != 5000 {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	peer.Close()
	if _, err := c.Read(make([]byte, 10)); err == nil || err == io.EOF {
		t.Errorf("err = %v, want the reset", err)
	}
}
