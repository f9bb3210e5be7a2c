package linux

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// running makes a member with an address by DHCP, and returns its port and namespace.
func (l *lab) running(n *Network, g core.GoalVNet) (hostnet.Config, hostnet.Port, string) {
	l.t.Helper()
	m := l.obtain(n, g, asking(g, 1))
	cfg := hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{m}}
	s := l.setUntil(n, "the port", func() hostnet.Config { return cfg }, func(s hostnet.Status) bool { return s.Ports[m.Key()] != "" && len(s.Problems) == 0 })
	return cfg, m, portOf(l.t, s, m)
}

// raise lets a Network that only extends leases work.
func (l *lab) raise(n *Network) {
	l.t.Helper()
	l.t.Cleanup(func() { _ = n.Close() })
	if err := n.Up(l.ctx()); err != nil {
		l.t.Fatal(err)
	}
}

// hears returns what says whether a datagram from one namespace to the network's server
// arrives there within half a second.
func (l *lab) hears(lan, from string) func() bool {
	l.t.Helper()
	const at = lanServer + ":9999"
	var server, client net.Conn
	in(l.t, lan, func() error {
		c, err := net.ListenPacket("udp4", at)
		if err == nil {
			server = c.(*net.UDPConn)
		}
		return err
	})
	l.t.Cleanup(func() { server.Close() })
	in(l.t, from, func() (err error) { client, err = net.Dial("udp4", at); return err })
	l.t.Cleanup(func() { client.Close() })
	n := 0
	return func() bool {
		n++
		for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
			_, _ = fmt.Fprint(client, n)
			buf := make([]byte, 16)
			_ = server.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			if k, err := server.Read(buf); err == nil && string(buf[:k]) == fmt.Sprint(n) {
				return true
			}
		}
		return false
	}
}

// await waits for what comes without a Set.
func (l *lab) await(what string, ok func() bool) {
	l.t.Helper()
	for end := time.Now().Add(40 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("never: %s", what)
		}
	}
}

// TestUplinkByDHCPGoesOn: a host that was started again and hears of no goal extends what it
// had leased, and takes away what it has lost.
func TestUplinkByDHCPGoesOn(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		away bool // the host is, for longer than a lease lasts
		then func(*scriptedDHCP)
		lost []string
	}{
		"it is extended":       {false, nil, nil},
		"it is refused":        {false, func(s *scriptedDHCP) { s.refuse, s.spare = true, true }, []string{"was not extended", "NAK"}},
		"the server is away":   {false, func(s *scriptedDHCP) { s.deaf = true }, []string{"has expired at "}},
		"the host was too far": {true, nil, []string{"has expired at ", "the host was not there to extend it"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			lan := newLAN(l)
			hostBridge(l)
			server := &scriptedDHCP{life: 6 * time.Second, next: 140}
			if c.lost == nil {
				server.life = 10 * time.Second // half of it for a busy machine
			}
			serveDHCP(l, lan, server)
			g := plant("u1", onLAN(byDHCP))
			n := l.up()
			cfg, m, at := l.running(n, g)
			wantGreeting(t, at, lanServer+":80", "lan "+m.Address.String())
			heard := l.hears(lan, at)
			if !heard() {
				t.Fatal("the network hears nothing of the member")
			}
			err := n.Close()
			if err != nil {
				t.Fatal(err)
			}
			if c.then != nil {
				server.set(func() { c.then(server) })
			}
			if c.away {
				time.Sleep(server.life + time.Second)
			}
			begun, before := time.Now(), server.count("REQUEST true")
			if n, err = New(l.options()); err != nil {
				t.Fatal(err)
			}
			n.ResumeLeases()
			proxies := func() string {
				return strings.TrimSpace(l.ip(filepath.Join(netnsDir, n.names.vnet("u1")), "neigh", "show", "proxy"))
			}
			if c.lost == nil {
				l.await("two leases' time", func() bool {
					return time.Since(begun) > 2*server.life+time.Second && server.count("REQUEST true") >= before+4
				})
				l.ip(lan, "neigh", "flush", "dev", "lan0")
				wantGreeting(t, at, lanServer+":80", "lan "+m.Address.String())
				l.raise(n)
				l.setUntil(n, "all is as it was", func() hostnet.Config { return cfg }, func(s hostnet.Status) bool {
					return s.Leased[m.Key()].Address == m.Address && len(s.Problems) == 0
				})
				return
			}
			l.await("no ARP answer", func() bool { return !strings.Contains(proxies(), m.Address.String()) })
			l.await("nothing of the member on the network", func() bool { return !heard() })
			server.set(func() { server.deaf, server.refuse = false, false })
			l.raise(n)
			s := l.setUntil(n, "it is lost", func() hostnet.Config { return cfg }, func(s hostnet.Status) bool { return s.Leased[m.Key()].Lost != "" })
			if why := s.Leased[m.Key()].Lost; !contains(why, append(c.lost, "uplink plant (bridge hbr0), subnet gateways: its DHCP lease of "+m.Address.String())...) {
				t.Errorf("it is lost because %q; want %q in it", why, c.lost)
			}
		})
	}
}

// TestUplinkByDHCPChangesItsMode: the next process releases the leases of one that had an
// uplink of another mode.
func TestUplinkByDHCPChangesItsMode(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := newLAN(l)
	hostBridge(l)
	leases := dnsmasq(l, lan, "192.168.10.132", "192.168.10.180")
	g := plant("u1", onLAN(byDHCP))
	n := l.up()
	_, m, _ := l.running(n, g)
	if err := n.Close(); err != nil || !strings.Contains(leases(), m.Address.String()) {
		t.Fatalf("%v, and the server has leased\n%s", err, leases())
	}
	g = plant("u1", onLAN(onBridge))
	l.set(l.up(), hostnet.Config{VNets: []core.GoalVNet{g}})
	wantReleased(t, leases, "192.168.10.")
}

// TestUplinkAnnounces: who knows another machine for an address learns at once that it is
// here now.
func TestUplinkAnnounces(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := newLAN(l)
	hostBridge(l)
	g := plant("u1", onLAN(onBridge))
	m, n := plantMember(g, 1), l.up()
	old := "02:00:00:00:00:99"
	l.ip(lan, "neigh", "replace", m.Address.String(), "lladdr", old, "dev", "lan0", "nud", "stale")
	time.Sleep(1100 * time.Millisecond) // the kernel believes nobody else within a second
	l.set(n, hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{m}})
	l.await("another neighbour at "+m.Address.String(), func() bool {
		now := l.ip(lan, "neigh", "show", m.Address.String())
		return strings.Contains(now, "lladdr") && !strings.Contains(now, old)
	})
}

func TestUplinkRecordsOfManyAtOnce(t *testing.T) {
	t.Parallel()
	n, err := New(Options{Instance: "abc", StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	const many = 20
	for i := range many {
		work.Go(func() {
			if err := n.uplinkRecords().put(uplinkRecord{VNetUID: fmt.Sprint(i), Uplink: "lan"}); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	if list, err := n.uplinkRecords().load(); err != nil || len(list) != many {
		t.Errorf("%d records, %v; want %d", len(list), err, many)
	}
}

// TestHintsDiffer: a server that can't give an address is asked for others, all of which
// members could have.
func TestHintsDiffer(t *testing.T) {
	t.Parallel()
	g := plant("u1", onLAN(byDHCP))
	p := usable{"own", g.Uplinks[0].Addressing, g.Subnets[0], nil, func() ([]netip.Addr, error) { return nil, nil }}
	if a := p.hint("own", false); a.IsValid() {
		t.Errorf("the uplink itself asks for %s: it needs none of the subnet", a)
	}
	for client, again := range map[string]bool{"m-1-1": false, "own": true} {
		seen := map[netip.Addr]bool{}
		for range 1000 {
			a := p.hint(client, again)
			if err := p.fits("m-1-1", a); err != nil {
				t.Fatal(err)
			}
			seen[a] = true
		}
		if len(seen) < 50 { // of 59
			t.Errorf("%s asks for %d addresses in 1,000 tries", client, len(seen))
		}
	}
}

// TestUsable: which addresses of a server nobody can have.
func TestUsable(t *testing.T) {
	t.Parallel()
	g := plant("u1", onLAN(byDHCP))
	u := g.Uplinks[0]
	v := &vnet{goal: g}
	p := usable{"own", u.Addressing, g.Subnets[0], v.resolvers(), func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("192.168.10.150")}, nil }}
	for a, c := range map[string]struct{ member, own string }{ // "" fits
		"192.168.10.140": {"", ""},
		"192.168.10.132": {"", ""},
		"192.168.10.60":  {"outside of subnet gateways", ""},
		"192.168.10.128": {"reserved in subnet", ""},
		"192.168.10.129": {"reserved in subnet", ""},
		"192.168.10.130": {"a resolver's", "a resolver's"},
		"192.168.10.191": {"reserved in subnet", ""},
		lanRouter:        {"the gateway's", "the gateway's"},
		"192.168.10.150": {"the host's own", "the host's own"},
		"192.168.10.0":   {"no machine's", "no machine's"},
		"192.168.10.255": {"no machine's", "no machine's"},
		"192.168.11.140": {"not on the network", "not on the network"},
		"127.0.0.1":      {"not on the network", "not on the network"},
		"224.0.0.1":      {"not on the network", "not on the network"},
	} {
		for client, want := range map[string]string{"m-1-1": c.member, "own": c.own} {
			err := p.fits(client, netip.MustParseAddr(a))
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s for %s: %v; want %q", a, client, err, want)
			}
		}
	}
}
