package linux

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// restLab has three members that leave by one public address, and a server in the world
// that tells the source of what it gets.
type restLab struct {
	*lab
	at      [3]string
	address [3]netip.Addr
	nat     string
	server  *net.TCPListener
	udp     *net.UDPConn
}

const restPort = 5000 // each member's own: the NAT gateway keeps it where it is free

func newRestLab(t *testing.T, timers ...sysctl) *restLab {
	t.Helper()
	l := newLab(t)
	l.ip(l.world, "route", "add", "203.0.113.0/24", "via", labHostAddr)
	g := corp("u1")
	g.NATGateways[0].PublicAddresses = []string{"203.0.113.8"}
	var ports []hostnet.Port
	for i := range 3 {
		ports = append(ports, member(g, i+1, i+1))
	}
	n := l.up()
	s := l.set(n, hostnet.Config{VNets: []core.GoalVNet{g}, Ports: ports})
	r := &restLab{lab: l, nat: n.vnets["u1"].nats["u1-egress"].at.path}
	for i, p := range ports {
		r.at[i], r.address[i] = portOf(t, s, p), p.Address
	}
	in(t, r.nat, func() error { return writeAll(timers) })
	in(t, l.world, func() error {
		listener, err := net.Listen("tcp4", labWorldAddr+":443")
		if err == nil {
			r.server = listener.(*net.TCPListener)
		}
		return err
	})
	t.Cleanup(func() { r.server.Close() })
	r.udp = listenUDPIn(t, l.world, netip.MustParseAddrPort(labWorldAddr+":443"))
	return r
}

// dial connects a member from restPort and gives both ends.
func (r *restLab) dial(who int) (client, server *net.TCPConn) {
	r.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: r.address[who].AsSlice(), Port: restPort}, Timeout: 10 * time.Second}
	d.SetMultipathTCP(false)
	in(r.t, r.at[who], func() error {
		c, err := d.Dial("tcp4", labWorldAddr+":443")
		if err == nil {
			client = c.(*net.TCPConn)
		}
		return err
	})
	r.server.SetDeadline(time.Now().Add(10 * time.Second))
	server, err := r.server.AcceptTCP()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func (r *restLab) fin(who int) int {
	client, server := r.dial(who)
	seen := server.RemoteAddr().(*net.TCPAddr).Port
	if err := errors.Join(client.CloseWrite(), server.CloseWrite()); err != nil {
		r.t.Fatal(err)
	}
	for _, c := range []net.Conn{client, server} { // both FINs have been there
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if n, _ := c.Read(make([]byte, 1)); n != 0 {
			r.t.Fatal("data in place of the end")
		}
	}
	return seen
}

func (r *restLab) rst(who int) int {
	client, server := r.dial(who)
	seen := server.RemoteAddr().(*net.TCPAddr).Port
	client.SetLinger(0)
	client.Close()
	server.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		r.t.Fatalf("not reset: %v", err)
	}
	return seen
}

// datagram asks from restPort; answered has the world reply.
func (r *restLab) datagram(who int, answered bool) int {
	r.t.Helper()
	c := listenUDPIn(r.t, r.at[who], netip.AddrPortFrom(r.address[who], restPort))
	defer c.Close()
	if _, err := c.WriteToUDPAddrPort([]byte("?"), netip.MustParseAddrPort(labWorldAddr+":443")); err != nil {
		r.t.Fatal(err)
	}
	buf := make([]byte, 8)
	r.udp.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, from, err := r.udp.ReadFromUDPAddrPort(buf)
	if err != nil {
		r.t.Fatal(err)
	}
	if answered {
		if _, err := r.udp.WriteToUDPAddrPort([]byte("!"), from); err != nil {
			r.t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, _, err := c.ReadFromUDPAddrPort(buf); err != nil {
			r.t.Fatal(err)
		}
	}
	return int(from.Port())
}

// left is how many seconds the NAT gateway will keep a member's only flow; 0: it has none.
func (r *restLab) left(who int) (seconds uint32) {
	r.t.Helper()
	in(r.t, r.nat, func() error {
		list, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		for _, f := range list {
			if a, ok := netip.AddrFromSlice(f.Forward.SrcIP.To4()); ok && a == r.address[who] {
				seconds = max(f.TimeOut, 1)
			}
		}
		return err
	})
	return seconds
}

// TestNATRestsAsLongAsItSays reads what the kernel gives real flows in each state.
func TestNATRestsAsLongAsItSays(t *testing.T) {
	t.Parallel()
	silent := func(space, rule string) func(*restLab) {
		return func(r *restLab) {
			nft(r.t, map[string]string{"member": r.at[0], "world": r.world}[space],
				"add table ip mute; add chain ip mute out { type filter hook output priority 0; }; add rule ip mute out "+rule)
			in(r.t, r.at[0], func() error {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				r.t.Cleanup(func() { unix.Close(fd) })
				err = unix.Connect(fd, &unix.SockaddrInet4{Port: 443, Addr: netip.MustParseAddr(labWorldAddr).As4()})
				if errors.Is(err, unix.EINPROGRESS) {
					return nil
				}
				return err
			})
		}
	}
	for name, c := range map[string]struct {
		flow func(*restLab)
		want uint32
	}{
		"FIN":                   {func(r *restLab) { r.fin(0) }, 65},
		"RST":                   {func(r *restLab) { r.rst(0) }, 16},
		"half-open, SYN":        {silent("world", "tcp sport 443 drop"), 30},
		"half-open, SYN-ACK":    {silent("member", "tcp dport 443 tcp flags & (syn | ack) == ack drop"), 30},
		"open":                  {func(r *restLab) { r.dial(0) }, 240},
		"UDP":                   {func(r *restLab) { r.datagram(0, false) }, 240},
		"UDP that was answered": {func(r *restLab) { r.datagram(0, true) }, 240},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRestLab(t)
			c.flow(r)
			var got uint32
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				if got = r.left(0); got <= c.want && got+12 > c.want { // the last packet may be on its way
					return
				}
			}
			t.Errorf("the NAT gateway keeps it for %d s, want %d", got, c.want)
		})
	}
}

// TestNATPortsRest: while a flow rests nobody else gets its port for that destination; after
// that they do. What "rest" is for UDP: its idle time and no more. The timers are short here.
func TestNATPortsRest(t *testing.T) {
	t.Parallel()
	short := func(names ...string) (out []sysctl) {
		for _, n := range names {
			out = append(out, sysctl{key: "netfilter/nf_conntrack_" + n, value: "6"})
		}
		return out
	}
	for name, flow := range map[string]func(*restLab, int) int{
		"FIN": (*restLab).fin, "RST": (*restLab).rst,
		"UDP": func(r *restLab, who int) int { return r.datagram(who, true) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRestLab(t, short("tcp_timeout_time_wait", "tcp_timeout_close", "udp_timeout", "udp_timeout_stream")...)
			if got := flow(r, 0); got != restPort {
				t.Fatalf("the first flow has port %d", got)
			}
			if got := flow(r, 1); got == restPort && r.left(0) > 0 {
				t.Errorf("another member got the port of a flow that rests")
			}
			soon(t, "both flows are forgotten", func() bool { return r.left(0) == 0 && r.left(1) == 0 })
			if got := flow(r, 2); got != restPort {
				t.Errorf("the port is free, and a third member got %d", got)
			}
		})
	}
}
