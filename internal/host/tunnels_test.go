package host

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
)

// TestReportsTellWhatTheRelayCarried: of members that are present, while connections are open
// and afterwards, and of what was refused.
func TestReportsTellWhatTheRelayCarried(t *testing.T) {
	t.Parallel()
	service, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	r := newRig(t)
	var away atomic.Bool
	var mu sync.Mutex
	var left []core.TunnelReport
	r.told = func(list []core.TunnelReport) {
		mu.Lock()
		defer mu.Unlock()
		left = list
	}
	r.service = func(ctx context.Context) (*net.TCPConn, error) {
		if away.Load() {
			return nil, errors.New("the service is away")
		}
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", service.Addr().String())
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}
	r.start()
	tunnel := netip.MustParseAddr("127.0.7.1")
	r.tunnel = func(int) netip.Addr { return tunnel }
	r.want(1)
	r.eventually("it runs", func() bool { return r.exists(1) })

	dial := func() (net.Conn, error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(tunnel, 0))}
		c, err := d.Dial("tcp", r.network.TunnelEndpoint().String())
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return c, err
	}
	member, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := member.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	answers, err := service.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer answers.Close()
	if _, err := io.ReadFull(answers, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if _, err := answers.Write([]byte("yes")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(member, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	wants := func(what string, want core.TunnelReport) {
		t.Helper()
		want.Member, want.Generation = "m-1", 1
		r.eventually(what, func() bool { return cmp.Equal([]core.TunnelReport{want}, r.lastReport().Tunnels) })
		r.eventually(what+", and is left for others", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return cmp.Equal([]core.TunnelReport{want}, left)
		})
	}
	wants("what is open is told", core.TunnelReport{Connections: 1, Accepted: 1, ToService: 5, ToMember: 3})
	away.Store(true)
	if gone, err := dial(); err == nil { // else the reset was there first
		_, _ = gone.Read(make([]byte, 1))
	}
	member.Close()
	answers.Close()
	wants("what is over and what was refused is told", core.TunnelReport{Accepted: 2, Refused: 1, ToService: 5, ToMember: 3})
	r.want(2)
	r.eventually("another has its tunnel address", func() bool { return r.exists(2) })
	r.eventually("and has carried nothing", func() bool { return len(r.lastReport().Tunnels) == 0 })
	r.want()
	r.eventually("a member that is gone is not told of", func() bool { return len(r.lastReport().Tunnels) == 0 })
}
