package relay_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/tunnel/relay"
)

// startHandover runs a relay whose service is in this process and echoes.
func startHandover(t *testing.T, o relay.Options) (*bench, *relay.Handover) {
	t.Helper()
	h := relay.NewHandover(&net.TCPAddr{})
	o.Handover = h
	b := start(t, o, func(*net.TCPConn) { t.Error("the service was dialled") })
	var conns sync.WaitGroup
	t.Cleanup(func() { h.Close(); conns.Wait() })
	conns.Go(func() {
		for {
			c, err := h.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	return b, h
}

func TestHandoverAccounts(t *testing.T) {
	t.Parallel()
	b, _ := startHandover(t, relay.Options{MaxPerMember: 2})
	c, other := b.dial(t), b.dial(t)
	if err := errors.Join(say(c), say(other)); err != nil {
		t.Fatal(err)
	}
	if !b.refused(t) {
		t.Error("the third is not refused")
	}
	eventually(t, "the bytes of open connections are seen", func() bool {
		return b.stats(t) == relay.Stats{Open: 2, Accepted: 2, Refused: 1, ToService: 2, ToMember: 2}
	})
	c.Close()
	eventually(t, "the connection is booked once", func() bool {
		return b.stats(t) == relay.Stats{Open: 1, Accepted: 2, Refused: 1, ToService: 2, ToMember: 2}
	})
	if err := say(b.dial(t)); err != nil {
		t.Errorf("after one has gone: %v", err)
	}
}

// TestForgetResets: a member that is gone leaves no connection, in whoever's hands it is.
func TestForgetResets(t *testing.T) {
	t.Parallel()
	handed, _ := startHandover(t, relay.Options{})
	for name, b := range map[string]*bench{"handed over": handed, "joined": start(t, relay.Options{}, echo)} {
		c := b.dial(t)
		if err := say(c); err != nil {
			t.Fatal(err)
		}
		if err := b.relay.Forget(netip.MustParseAddr("127.0.0.2")); err != nil {
			t.Error(err)
		}
		if err := say(c); err != nil {
			t.Errorf("%s: another member's end broke it: %v", name, err)
		}
		if err := b.relay.Forget(netip.MustParseAddr("127.0.0.1")); err != nil {
			t.Error(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the member reads %v, want a reset", name, err)
		}
		eventually(t, "it is booked", func() bool { return b.stats(t).Open == 0 })
	}
}

// TestServiceThatTakesNothing: the member is told at once that there is no service any more, and
// after a while that it does not answer.
func TestServiceThatTakesNothing(t *testing.T) {
	t.Parallel()
	slow := relay.NewHandover(&net.TCPAddr{})
	t.Cleanup(func() { slow.Close() })
	b := start(t, relay.Options{Handover: slow, DialTimeout: 100 * time.Millisecond}, echo)
	if !b.refused(t) {
		t.Error("a service that does not take it: not reset")
	}
	gone := relay.NewHandover(&net.TCPAddr{})
	gone.Close()
	if _, err := gone.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	c := start(t, relay.Options{Handover: gone, DialTimeout: time.Hour}, echo)
	if !c.refused(t) {
		t.Error("a service that is gone: not reset")
	}
	if s := c.stats(t); s.Refused != 1 || s.Open != 0 {
		t.Errorf("stats %+v", s)
	}
}
