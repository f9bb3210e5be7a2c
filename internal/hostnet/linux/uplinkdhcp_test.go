package linux

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/nettest"
)

// byDHCP is an uplink whose members lease their addresses on the network.
func byDHCP(u *core.Uplink) { u.Bridge, u.Addressing.Mode = "hbr0", core.AddressingDHCP }

// asking is a member's port without an address.
func asking(g core.GoalVNet, i int) hostnet.Port {
	p := plantMember(g, i)
	p.Address = netip.Addr{}
	return p
}

// dnsmasq serves a range of the network from its own namespace, and returns what it has
// leased, as its file has it.
func dnsmasq(l *lab, lan, from, to string, more ...string) func() string {
	l.t.Helper()
	return runDnsmasq(l, lan, append([]string{"--interface=lan0", "--bind-interfaces", fmt.Sprintf("--dhcp-range=%s,%s,255.255.255.0,2m", from, to)}, more...)...)
}

func runDnsmasq(l *lab, ns string, as ...string) func() string {
	l.t.Helper()
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		l.t.Skip("needs dnsmasq: apt-get install dnsmasq-base")
	}
	leases := filepath.Join(l.t.TempDir(), "leases")
	cmd := exec.Command("ip", append([]string{"netns", "exec", filepath.Base(ns), "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0",
		"--user=root", "--no-ping", "--dhcp-authoritative", "--log-facility=-", "--log-dhcp", "--dhcp-leasefile=" + leases, "--pid-file="}, as...)...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if l.t.Failed() {
			l.t.Logf("dnsmasq:\n%s", log.String())
		}
	})
	return func() string { return nettest.ReadLeases(l.t, leases) }
}

// setUntil repeats Set, as the host does when the network says that something changed.
func (l *lab) setUntil(n *Network, what string, cfg func() hostnet.Config, ok func(hostnet.Status) bool) hostnet.Status {
	l.t.Helper()
	deadline := time.After(90 * time.Second)
	for {
		s, err := n.Set(l.ctx(), cfg())
		if err != nil {
			l.t.Fatal(err)
		}
		if ok(s) {
			return s
		}
		select {
		case <-n.Changes():
		case <-time.After(time.Second):
		case <-deadline:
			l.t.Fatalf("never: %s; leased %+v, problems %v", what, s.Leased, s.Problems)
		}
	}
}

// obtain waits until a port has an address, and returns it with that.
func (l *lab) obtain(n *Network, g core.GoalVNet, p hostnet.Port) hostnet.Port {
	l.t.Helper()
	cfg := hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{p}}
	s := l.setUntil(n, "an address for "+p.Member, func() hostnet.Config { return cfg }, func(s hostnet.Status) bool { return s.Leased[p.Key()].Address.IsValid() })
	p.Address = s.Leased[p.Key()].Address
	return p
}

// TestUplinkByDHCP leases from dnsmasq: an address for the uplink and one for a member, which
// the network then reaches; kept by the next process, released when the member goes.
func TestUplinkByDHCP(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := newLAN(l)
	hostBridge(l)
	leases := dnsmasq(l, lan, "192.168.10.100", "192.168.10.180") // wider than the subnet
	g := plant("u1", onLAN(byDHCP))
	n := l.up()
	m := l.obtain(n, g, asking(g, 1))
	if !netip.MustParsePrefix(lanSubnet).Contains(m.Address) || !strings.Contains(leases(), " "+m.Address.String()+" ") {
		t.Fatalf("it has %s, and the server has leased\n%s", m.Address, leases())
	}
	cfg := hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{m}}
	ready := func(s hostnet.Status) bool { return s.Ports[m.Key()] != "" && len(s.Problems) == 0 }
	at := portOf(t, l.setUntil(n, "the port", func() hostnet.Config { return cfg }, ready), m)
	wantGreeting(t, at, lanServer+":80", "lan "+m.Address.String())
	if own := n.vnets["u1"].uplinks["plant"].own; !strings.Contains(leases(), " "+own.String()+" ") || own == m.Address {
		t.Errorf("the uplink's own address is %s, the member's %s; the server has leased\n%s", own, m.Address, leases())
	}
	items, err := n.Inventory(l.ctx())
	if err != nil || !contains(fmt.Sprint(items), "DHCP lease", m.Address.String()) {
		t.Errorf("the inventory lacks the lease: %v, %v", items, err)
	}

	before := leases()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = l.up()
	l.setUntil(n, "the port, of the next process", func() hostnet.Config { return cfg }, ready)
	l.ip(lan, "neigh", "flush", "dev", "lan0") // ARP is answered from the first Set on
	wantGreeting(t, at, lanServer+":80", "lan "+m.Address.String())
	if now := leases(); strings.Count(now, "\n") != strings.Count(before, "\n") || !strings.Contains(now, " "+m.Address.String()+" ") {
		t.Errorf("the next process has other leases:\n%s\nwas\n%s", now, before)
	}

	none := hostnet.Config{VNets: []core.GoalVNet{g}}
	l.setUntil(n, "the release", func() hostnet.Config { return none }, func(s hostnet.Status) bool { return len(s.Leased) == 0 })
	wantReleased(t, leases, m.Address.String()+" ")
	l.set(n, hostnet.Config{})
	n.reaper.wait()
	wantReleased(t, leases, "192.168.10.")
	if _, err := os.Stat(n.dhcpRecords().file); !isNotExist(err) {
		t.Errorf("the record of the leases is there still: %v", err)
	}
}

func wantReleased(t *testing.T, leases func() string, a string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); strings.Contains(leases(), " "+a); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s is not released:\n%s", a, leases())
		}
	}
}

// TestUplinkByDHCPIsCleanedUp: another process releases what a crashed one had leased.
func TestUplinkByDHCPIsCleanedUp(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := newLAN(l)
	leases := dnsmasq(l, lan, "192.168.10.132", "192.168.10.180")
	g := plant("u1", onLAN(func(u *core.Uplink) { u.Device, u.Addressing.Mode = "lan0", core.AddressingDHCP }))
	n := l.up()
	m, before := l.obtain(n, g, asking(g, 1)), leases()
	if err := errorsOf(n.Close(), again(t, l).CleanUp(l.ctx())); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(before, m.Address.String()) {
		t.Fatalf("the server had not leased %s:\n%s", m.Address, before)
	}
	wantReleased(t, leases, "192.168.10.")
}

// scriptedDHCP is a server that does to each request what the test says.
type scriptedDHCP struct {
	mu     sync.Mutex
	life   time.Duration
	rebind time.Duration // T2, if it says that
	deaf   bool          // answers nothing
	refuse bool          // answers extensions with NAK
	spare  bool          // but not those of the uplink's own address
	next   byte          // the last byte of the next address
	given  map[string]netip.Addr
	asked  []string
}

func serveDHCP(l *lab, lan string, s *scriptedDHCP) {
	l.t.Helper()
	s.given = map[string]netip.Addr{}
	handleDHCP(l, lan, "lan0", s.handle)
}

func handleDHCP(l *lab, ns, dev string, handle server4.Handler) {
	l.t.Helper()
	var server *server4.Server
	in(l.t, ns, func() (err error) {
		server, err = server4.NewServer(dev, &net.UDPAddr{IP: net.IPv4zero, Port: 67}, handle)
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve()
	}()
	l.t.Cleanup(func() { server.Close(); <-done })
}

func (s *scriptedDHCP) handle(conn net.PacketConn, _ net.Addr, m *dhcpv4.DHCPv4) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := string(m.Options.Get(dhcpv4.OptionClientIdentifier))
	kind, extends := dhcpv4.MessageTypeAck, len(m.ClientIPAddr) > 0 && !m.ClientIPAddr.IsUnspecified()
	s.asked = append(s.asked, fmt.Sprintf("%s %v", m.MessageType(), extends))
	switch {
	case s.deaf || m.MessageType() == dhcpv4.MessageTypeRelease:
		return
	case m.MessageType() == dhcpv4.MessageTypeDecline:
		delete(s.given, id)
		return
	case m.MessageType() == dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case extends && s.refuse && !(s.spare && strings.Contains(id, ownClientPrefix)):
		kind = dhcpv4.MessageTypeNak
	}
	if !s.given[id].IsValid() {
		s.given[id] = netip.AddrFrom4([4]byte{192, 168, 10, s.next})
		s.next++
	}
	r, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(s.given[id].AsSlice()),
		dhcpv4.WithServerIP(net.ParseIP(lanServer)), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(lanServer))), dhcpv4.WithLeaseTime(uint32(s.life.Seconds())))
	if err == nil {
		if s.rebind != 0 {
			r.UpdateOption(dhcpv4.OptRebindingTimeValue(s.rebind))
		}
		_, _ = conn.WriteTo(r.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 68})
	}
}

func (s *scriptedDHCP) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// count is how many messages of a sort it was sent: "REQUEST true" extends a lease.
func (s *scriptedDHCP) count(sort string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.asked {
		if a == sort {
			n++
		}
	}
	return n
}

func TestUplinkByDHCPLosesItsLease(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		server *scriptedDHCP
		end    func(*scriptedDHCP) // once there is an address
		want   []string
	}{
		"no server":          {&scriptedDHCP{deaf: true}, nil, []string{"uplink plant (bridge hbr0), subnet gateways: no DHCP server answered (for "}},
		"another network's":  {&scriptedDHCP{life: time.Hour, next: 70}, nil, []string{"the DHCP server gives 192.168.10.7", "outside of subnet gateways (192.168.10.128/26)"}},
		"a NAK at renewal":   {&scriptedDHCP{life: 4 * time.Second, next: 140}, func(s *scriptedDHCP) { s.refuse = true }, []string{"lease of 192.168.10.14", "was not extended", "NAK"}},
		"the server is away": {&scriptedDHCP{life: 4 * time.Second, next: 140}, func(s *scriptedDHCP) { s.deaf = true }, []string{"lease of 192.168.10.14", "has expired"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			lan := newLAN(l)
			hostBridge(l)
			s := c.server
			serveDHCP(l, lan, s)
			g := plant("u1", onLAN(byDHCP))
			n := l.up(func(o *Options) { o.DHCPGiveUp = 3 * time.Second })
			m := asking(g, 1)
			if c.end != nil {
				m = l.obtain(n, g, m)
			}
			cfg := hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{m}}
			if c.end != nil {
				l.setUntil(n, "the port", func() hostnet.Config { return cfg }, func(s hostnet.Status) bool { return s.Ports[m.Key()] != "" })
				s.set(func() { c.end(s) })
			}
			got := l.setUntil(n, "it is lost", func() hostnet.Config { return cfg }, func(s hostnet.Status) bool { return s.Leased[m.Key()].Lost != "" })
			if lost := got.Leased[m.Key()].Lost; !contains(lost, c.want...) {
				t.Errorf("it is lost because %q; want %q in it", lost, c.want)
			}
			l.setUntil(n, "no ARP answer", func() hostnet.Config { return cfg }, func(hostnet.Status) bool {
				return strings.TrimSpace(l.ip(filepath.Join(netnsDir, n.names.vnet("u1")), "neigh", "show", "proxy")) == ""
			})
		})
	}
}

// TestUplinkByDHCPRenews: the member keeps its address, and its connection, past the first
// lease's end; also if the server hears only what is for it alone (RENEWING), or only what is
// for all (REBINDING).
func TestUplinkByDHCPRenews(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		server *scriptedDHCP
		deafTo string // a destination
		leases int    // that it lasts at least
	}{
		"by either":                {&scriptedDHCP{life: 8 * time.Second}, "", 2},
		"by what is for it alone":  {&scriptedDHCP{life: 10 * time.Second}, "255.255.255.255", 1},
		"by what is for everybody": {&scriptedDHCP{life: 20 * time.Second, rebind: 10 * time.Second}, lanServer, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			lan := newLAN(l)
			hostBridge(l)
			s := c.server
			s.next = 140
			serveDHCP(l, lan, s)
			g := plant("u1", onLAN(byDHCP))
			n := l.up()
			m := l.obtain(n, g, asking(g, 1))
			begun := time.Now()
			if c.deafTo != "" {
				in(t, lan, func() error { // RFC 1122, 3.3.6
					return writeAll([]sysctl{{key: "ipv4/conf/lan0/drop_unicast_in_l2_multicast", value: "1"}})
				})
				nft(t, lan, "add table ip deaf; add chain ip deaf in { type filter hook input priority 0; }; add rule ip deaf in ip daddr "+c.deafTo+" udp dport 67 drop")
			}
			cfg := hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{m}}
			ready := func(s hostnet.Status) bool { return s.Ports[m.Key()] != "" && len(s.Problems) == 0 }
			at := portOf(t, l.setUntil(n, "the port", func() hostnet.Config { return cfg }, ready), m)
			conn, err := dialIn(t, at, lanServer+":80", 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := line(conn); err != nil {
				t.Fatal(err)
			}
			long := time.Duration(c.leases)*s.life + time.Second
			l.setUntil(n, "its lease's end", func() hostnet.Config { return cfg }, func(st hostnet.Status) bool {
				if lost := st.Leased[m.Key()].Lost; lost != "" {
					t.Fatal(lost)
				}
				return time.Since(begun) > long
			})
			echo(t, conn, "after the lease's end")
			if k := s.count("REQUEST true"); k < 2*c.leases {
				t.Errorf("%d extensions for two clients in %v; want %d at least", k, long, 2*c.leases)
			}
		})
	}
}
