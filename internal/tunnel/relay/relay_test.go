package relay_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/splice"
	"github.com/sluice-gateway/sluice/internal/tunnel/relay"
	"github.com/sluice-gateway/sluice/internal/tunnel/tunneltest"
)

const patience = 10 * time.Second

// bench is a relay in front of a service that a test gives.
type bench struct {
	addr  string
	relay *relay.Relay
	stop  func() error
}

// start runs a relay; serve gets each connection that arrives at the service.
func start(t *testing.T, o relay.Options, serve func(*net.TCPConn)) *bench {
	t.Helper()
	loopback := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}
	service, err := net.ListenTCP("tcp", loopback)
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := service.AcceptTCP()
			if err != nil {
				return
			}
			conns.Go(func() { defer c.Close(); serve(c) })
		}
	})
	t.Cleanup(func() { service.Close(); conns.Wait() })
	ln, err := net.ListenTCP("tcp", loopback)
	if err != nil {
		t.Fatal(err)
	}
	o.Listener = ln
	if o.Known == nil {
		o.Known = func(netip.Addr) bool { return true }
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context) (*net.TCPConn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", service.Addr().String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		}
	}
	o.Logger = tunneltest.Logger(t)
	if o.Splicer == nil {
		o.Splicer = splice.Local(o.Logger)
		t.Cleanup(o.Splicer.Close)
	}
	r, err := relay.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- r.Run(ctx) }()
	b := &bench{addr: ln.Addr().String(), relay: r, stop: sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-result:
			return err
		case <-time.After(patience):
			return errors.New("the relay does not end")
		}
	})}
	t.Cleanup(func() {
		if err := b.stop(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := b.tryDial(t)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// tryDial may see the relay's reset even before it has the connection.
func (b *bench) tryDial(t *testing.T) (*net.TCPConn, error) {
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), nil
}

// refused reports whether the relay resets a new connection.
func (b *bench) refused(t *testing.T) bool {
	c, err := b.tryDial(t)
	if err == nil {
		err = say(c)
	}
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

func echo(c *net.TCPConn) { io.Copy(c, c); c.CloseWrite() }

// say sends a byte and wants it back.
func say(c *net.TCPConn) error {
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

func (b *bench) stats(t *testing.T) relay.Stats {
	t.Helper()
	return b.all(t)[netip.MustParseAddr("127.0.0.1")]
}

func (b *bench) all(t *testing.T) map[netip.Addr]relay.Stats {
	t.Helper()
	all, err := b.relay.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestHalfCloseAndAccounts(t *testing.T) {
	t.Parallel()
	b := start(t, relay.Options{}, echo)
	c := b.dial(t)
	c.Write(make([]byte, 1000))
	io.ReadFull(c, make([]byte, 1000))
	eventually(t, "the bytes of an open connection are seen", func() bool {
		s := b.stats(t)
		return s.Open == 1 && s.ToService == 1000 && s.ToMember == 1000
	})
	c.Write(make([]byte, 234))
	c.CloseWrite()
	if rest, err := io.ReadAll(c); len(rest) != 234 || err != nil {
		t.Errorf("after the half-close: %d bytes, %v", len(rest), err)
	}
	eventually(t, "the connection is booked", func() bool {
		return b.stats(t) == relay.Stats{Accepted: 1, ToService: 1234, ToMember: 1234}
	})
}

func TestUnknownAddressIsRefused(t *testing.T) {
	t.Parallel()
	var reached atomic.Int32
	b := start(t, relay.Options{Known: func(netip.Addr) bool { return false }}, func(*net.TCPConn) { reached.Add(1) })
	if !b.refused(t) {
		t.Error("an unknown address is not refused")
	}
	if reached.Load() != 0 {
		t.Error("the service was dialled")
	}
	if n := len(b.all(t)); n != 0 {
		t.Errorf("%d accounts of unknown addresses", n)
	}
}

func TestAccountGoesWithTheMember(t *testing.T) {
	t.Parallel()
	var known atomic.Bool
	known.Store(true)
	b := start(t, relay.Options{Known: func(netip.Addr) bool { return known.Load() }}, echo)
	c := b.dial(t)
	if err := say(c); err != nil {
		t.Fatal(err)
	}
	known.Store(false)
	if err := say(c); err != nil {
		t.Errorf("an established connection ends with the listing: %v", err)
	}
	c.Close()
	eventually(t, "the account is gone", func() bool { return len(b.all(t)) == 0 })
}

// TestAccountsOfTwoWithOneAddress: the address of a member that is gone becomes another's, which
// has carried nothing yet, whatever is still to be booked of the first.
func TestAccountsOfTwoWithOneAddress(t *testing.T) {
	t.Parallel()
	b := start(t, relay.Options{}, echo)
	c, open := b.dial(t), b.dial(t)
	if err := errors.Join(say(c), say(open)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	eventually(t, "one is over", func() bool { return b.stats(t) == relay.Stats{Open: 1, Accepted: 2, ToService: 2, ToMember: 2} })
	if err := b.relay.Forget(netip.MustParseAddr("127.0.0.1")); err != nil {
		t.Error(err)
	}
	if err := say(b.dial(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := open.Read(make([]byte, 1)); err == nil {
		t.Error("a connection of the first is not reset")
	}
	want := relay.Stats{Open: 1, Accepted: 1, ToService: 1, ToMember: 1}
	eventually(t, "the second's own alone", func() bool { return b.stats(t) == want })
	if got := b.stats(t); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestLimitPerMember(t *testing.T) {
	t.Parallel()
	b := start(t, relay.Options{MaxPerMember: 3}, echo)
	var conns []*net.TCPConn
	for range 3 {
		c := b.dial(t)
		if err := say(c); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if !b.refused(t) {
		t.Error("the fourth is not refused")
	}
	if s := b.stats(t); s.Refused != 1 || s.Open != 3 {
		t.Errorf("stats %+v", s)
	}
	conns[0].Close()
	eventually(t, "a place is free", func() bool { return b.stats(t).Open == 2 })
	if err := say(b.dial(t)); err != nil {
		t.Errorf("after one has gone: %v", err)
	}
}

// TestDialThatHangsHoldsUpNobody: the service's side of one connection hangs; others
// are relayed meanwhile, and the one that hangs ends after the time-out.
func TestDialThatHangsHoldsUpNobody(t *testing.T) {
	t.Parallel()
	var dials atomic.Int32
	var b *bench
	back, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	go func() {
		for {
			c, err := back.AcceptTCP()
			if err != nil {
				return
			}
			go echo(c)
		}
	}()
	b = start(t, relay.Options{
		DialTimeout: 4 * time.Second,
		Dial: func(ctx context.Context) (*net.TCPConn, error) {
			if dials.Add(1) == 1 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return net.DialTCP("tcp", nil, back.Addr().(*net.TCPAddr))
		},
	}, echo)
	first := b.dial(t)
	eventually(t, "the first dial hangs", func() bool { return dials.Load() == 1 })
	began := time.Now()
	if err := say(b.dial(t)); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("the second connection waited %s for the first one's dial", d)
	}
	if err := say(first); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the first: %v, want a reset after the time-out", err)
	}
	if s := b.stats(t); s.Refused != 1 {
		t.Errorf("stats %+v", s)
	}
}

// TestStalledConnectionHoldsUpNobody: one member's peer stops reading; new dials and
// established connections go on.
func TestStalledConnectionHoldsUpNobody(t *testing.T) {
	t.Parallel()
	b := start(t, relay.Options{}, func(c *net.TCPConn) {
		first := make([]byte, 1)
		io.ReadFull(c, first)
		if first[0] == 'f' {
			for {
				if _, err := c.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}
		c.Write(first)
		echo(c)
	})
	established := b.dial(t)
	if err := say(established); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		b.dial(t).Write([]byte("f")) // and reads nothing
	}
	time.Sleep(200 * time.Millisecond)
	for range 50 {
		began := time.Now()
		if err := errors.Join(say(established), say(b.dial(t))); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d > 10*time.Second {
			t.Errorf("waited %s", d)
		}
	}
}

func TestConnectionsOutliveTheRelay(t *testing.T) {
	t.Parallel()
	splicer := splice.Local(tunneltest.Logger(t))
	t.Cleanup(splicer.Close)
	b := start(t, relay.Options{Splicer: splicer}, echo)
	c := b.dial(t)
	if err := say(c); err != nil {
		t.Fatal(err)
	}
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial("tcp", b.addr); err == nil {
		t.Error("the relay still listens")
	}
	if err := say(c); err != nil {
		t.Errorf("the connection ended with the relay: %v", err)
	}
}

// TestStopLeavesNothing: with the splicer's end, too, the connections are reset.
func TestStopLeavesNothing(t *testing.T) {
	tunneltest.NoLeak(t)
	splicer := splice.Local(tunneltest.Logger(t))
	b := start(t, relay.Options{Splicer: splicer}, echo)
	c := b.dial(t)
	if err := say(c); err != nil {
		t.Fatal(err)
	}
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	splicer.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the member reads %v, want a reset: not an end", err)
	}
}

func TestListenerThatFailsEndsTheRelay(t *testing.T) {
	t.Parallel()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	splicer := splice.Local(tunneltest.Logger(t))
	t.Cleanup(splicer.Close)
	r, err := relay.New(relay.Options{
		Listener: ln, Known: func(netip.Addr) bool { return true }, Splicer: splicer,
		Dial: func(context.Context) (*net.TCPConn, error) { return nil, errors.New("no") },
	})
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if err := r.Run(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("err = %v", err)
	}
}
