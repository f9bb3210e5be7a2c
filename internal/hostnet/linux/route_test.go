package linux

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/policy"
	"github.com/sluice-gateway/sluice/internal/testseed"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routed is corp without rules, its subnet gateways with a route table, and a data
// service on 10.20.1.4.
func routed(routes ...core.Route) core.GoalVNet {
	g := withEndpoint(corp("u1"), "db", "10.20.1.4", 5432, "127.0.0.1:5432")
	for i := range g.Subnets {
		g.Subnets[i].NSG = ""
	}
	g.NSGs = nil
	g.Subnets[0].RouteTable = "private"
	g.RouteTables = []core.RouteTable{{Name: "private", Routes: routes}}
	return g
}

func hop(p string, h core.NextHop) core.Route {
	return core.Route{Name: "r-" + p, Prefix: netip.MustParsePrefix(p), NextHop: h}
}

func appliance(p, a string) core.Route {
	return core.Route{Name: "r-" + p, Prefix: netip.MustParsePrefix(p), NextHop: core.HopVirtualAppliance, Address: netip.MustParseAddr(a)}
}

// TestUserDefinedRoutes changes the table of one network and looks at what gets through.
func TestUserDefinedRoutes(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.host, "127.0.0.1:5432", "orders")
	serveIn(t, l.world, labWorldAddr+":80", "world")
	plain := routed()
	a, b := member(plain, 1, 1), member(plain, 2, 2)
	n := l.up()
	cfg := hostnet.Config{VNets: []core.GoalVNet{plain}, Ports: []hostnet.Port{a, b}}
	s := l.set(n, cfg)
	at, near := portOf(t, s, a), portOf(t, s, b)
	serveIn(t, near, b.Address.String()+":80", "near")

	type reach struct{ db, world, near bool }
	for _, c := range []struct {
		name   string
		routes []core.Route
		want   reach
	}{
		{"without a route", nil, reach{true, true, true}},
		{"None is silent, system routes beside it hold", []core.Route{hop("10.20.1.0/24", core.HopNone)}, reach{false, true, true}},
		{"user-defined over system", []core.Route{hop("0.0.0.0/0", core.HopNone)}, reach{true, false, true}},
		{"the same prefix as the address space", []core.Route{hop("10.20.0.0/16", core.HopNone)}, reach{false, true, false}},
		{"a shorter prefix than the system's", []core.Route{hop("10.0.0.0/8", core.HopNone)}, reach{true, true, true}},
		{"an exception", []core.Route{hop("10.20.0.0/16", core.HopNone), hop("10.20.1.4/32", core.HopVnetLocal)}, reach{true, true, false}},
		{"the Internet for one prefix", []core.Route{hop("0.0.0.0/0", core.HopNone), hop("198.51.100.0/24", core.HopInternet)}, reach{true, true, true}},
		{"inside a subnet", []core.Route{hop("10.20.0.0/24", core.HopNone)}, reach{true, true, false}},
		{"gone again", nil, reach{true, true, true}},
	} {
		cfg.VNets = []core.GoalVNet{routed(c.routes...)}
		l.set(n, cfg)
		for _, to := range []struct {
			addr, greeting string
			open           bool
		}{
			{"10.20.1.4:5432", "orders 127.0.0.1", c.want.db}, {labWorldAddr + ":80", "world " + labHostAddr, c.want.world},
			{b.Address.String() + ":80", "near " + a.Address.String(), c.want.near},
		} {
			if to.open {
				if got, err := greeting(t, at, to.addr); err != nil || got != to.greeting {
					t.Errorf("%s: %s answers %q, %v; want %q", c.name, to.addr, got, err, to.greeting)
				}
			} else if conn, err := dialIn(t, at, to.addr, 400*time.Millisecond); err == nil {
				t.Errorf("%s: %s was reached", c.name, conn.RemoteAddr())
			}
		}
	}
	if list := ruleText(t, n, "u1"); strings.Contains(list, "20000:") || strings.Contains(list, "10000:") || !strings.HasPrefix(list, "0:") {
		t.Errorf("without routes the rules are not the kernel's again:\n%s", list)
	}
}

func ruleText(t *testing.T, n *Network, uid string) string {
	t.Helper()
	list, err := n.vnets[uid].at.nl.RuleList(unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range list {
		out = append(out, fmt.Sprintf("%d: mark %d table %d", r.Priority, r.Mark, r.Table))
	}
	return strings.Join(out, "\n")
}

// TestResolverIsReachedWhateverTheRoutes holds that platform traffic meets no route.
func TestResolverIsReachedWhateverTheRoutes(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := routed(hop("0.0.0.0/0", core.HopNone), hop("10.20.0.0/16", core.HopNone), hop("10.20.0.0/24", core.HopNone))
	g.Subnets[1].RouteTable = "private"
	m := member(g, 1, 1)
	n := l.up()
	at := portOf(t, l.set(n, hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{m}}), m)
	c, err := dialIn(t, at, "10.20.0.2:53", 10*time.Second)
	if err != nil {
		t.Fatalf("the resolver: %v", err)
	}
	c.Close()
}

// TestApplianceBehindAnUplink reaches the world through a router of the existing network;
// what the route does not name goes elsewhere, and nothing begins from there.
func TestApplianceBehindAnUplink(t *testing.T) {
	t.Parallel()
	const beyond, apart = "203.0.113.50", "203.0.113.60"
	for name, change := range map[string]func(*core.Uplink){
		"leases on that network": onDevice,
		"a routed network":       func(u *core.Uplink) { onDevice(u); behindRouter(u) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			lan := newLAN(l)
			routeBack(l, lan)
			in(t, lan, func() error { // it asks for neighbours as a router does, under its own address
				return writeAll([]sysctl{{key: "ipv4/conf/lan0/arp_announce", value: "2"}})
			})
			for _, a := range []string{beyond, apart} {
				l.ip(lan, "addr", "add", a+"/32", "dev", "lo")
			}
			g := plant("u1", onLAN(change))
			if name == "leases on that network" {
				l.ip(lan, "route", "del", lanSubnet)
			}
			g.NSGs[0].Rules = g.NSGs[0].Rules[:1]
			g.Subnets[0].RouteTable = "private"
			table := func(routes ...core.Route) {
				g.RouteTables = []core.RouteTable{{Name: "private", Routes: routes}}
			}
			table(appliance(beyond+"/32", lanServer))
			a := plantMember(g, 1)
			n := l.up()
			set := func() string {
				return portOf(t, l.set(n, hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{a}}), a)
			}
			at := set()
			wantGreeting(t, at, beyond+":80", "lan "+a.Address.String())
			wantNoWay(t, at, apart+":80")
			wantGreeting(t, at, lanServer+":80", "lan "+a.Address.String())
			serveIn(t, at, "0.0.0.0:90", "member")
			if c, err := dialFrom(t, lan, beyond, a.Address.String()+":90"); err == nil {
				c.Close()
				t.Error("a connection began beyond the appliance")
			}
			table()
			set()
			wantNoWay(t, at, beyond+":80")
		})
	}
}

// wantNoWay holds that no connection is made, however that fails.
func wantNoWay(t *testing.T, path, addr string) {
	t.Helper()
	if c, err := dialIn(t, path, addr, 400*time.Millisecond); err == nil {
		c.Close()
		t.Errorf("%s was reached", addr)
	}
}

// dialFrom connects from a namespace under one of its addresses.
func dialFrom(t *testing.T, path, from, to string) (c net.Conn, err error) {
	t.Helper()
	in(t, path, func() error {
		d := net.Dialer{Timeout: 400 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err = d.Dial("tcp4", to)
		return nil
	})
	return c, err
}

func waitUntil(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// sniffed reads the IPv4 packets that come in at eth0.
type sniffed struct{ fd int }

func sniffPort(t *testing.T, path string) sniffed {
	t.Helper()
	const ip = unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8
	var s sniffed
	in(t, path, func() error {
		i, err := net.InterfaceByName(ethName)
		if err != nil {
			return err
		}
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, ip); err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(s.fd) })
		wait := unix.NsecToTimeval(int64(50 * time.Millisecond))
		if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
			return err
		}
		return unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: ip, Ifindex: i.Index})
	})
	return s
}

func (s sniffed) next() (src, dst netip.Addr, ok bool) {
	buf := make([]byte, 2048)
	k, _, err := unix.Recvfrom(s.fd, buf, 0)
	if err != nil || k < 20 {
		return src, dst, false
	}
	src, _ = netip.AddrFromSlice(buf[12:16])
	dst, _ = netip.AddrFromSlice(buf[16:20])
	return src, dst, true
}

// packetFrom is a UDP datagram without data; the kernel fills in the header's checksum.
func packetFrom(src, dst netip.Addr) []byte {
	p := make([]byte, 28)
	p[0], p[3], p[8], p[9] = 0x45, 28, 64, unix.IPPROTO_UDP
	copy(p[12:], src.AsSlice())
	copy(p[16:], dst.AsSlice())
	p[21], p[23], p[25] = 9, 9, 8
	return p
}

// TestKernelTakesTheRouteThatTheEvaluatorNames makes random tables and asks the kernel of
// a real namespace, for many destinations, where a member's packet would go.
func TestKernelTakesTheRouteThatTheEvaluatorNames(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(testseed.Of(t), 1))
	l := newLab(t)
	n := l.up()
	hub := peerOf("hub", "10.30.0.0/16", "u1")
	kinds := map[string]int{}
	for range 40 {
		g := routed(randomRoutes(r)...)
		g.Peers = []core.GoalPeer{{UID: hub.UID, Name: hub.Name, AddressSpace: hub.AddressSpace}}
		a, b := member(g, 1, 1), member(g, 2, 2)
		l.set(n, hostnet.Config{VNets: []core.GoalVNet{g, hub}, Ports: []hostnet.Port{a, b}})
		v := n.vnets["u1"]
		e := policy.NewEvaluator(g, v.resolvers())
		for range 60 {
			dst := randomAddress(r)
			verdict := e.Evaluate(policy.Flow{Source: a.Address, Destination: dst, Protocol: core.ProtocolUDP, SourcePort: 9, DestinationPort: 9})
			by, _ := e.Deciding(policy.Flow{Source: a.Address, Destination: dst, Protocol: core.ProtocolUDP, DestinationPort: 9})
			want := expectedWay(v, g, verdict.Route, by, dst)
			kinds[strings.Fields(verdict.Route)[0]]++
			if got := kernelWay(t, v, portLink(a.Key()), a.Address, dst); got != want {
				t.Errorf("%v\nto %s: the kernel takes %s, want %s: %s by %s", g.RouteTables[0].Routes, dst, got, want, verdict.Route, by)
			}
		}
	}
	t.Log(kinds)
	for _, k := range []string{"none:", "VnetLocal", "NAT", "Peering"} {
		if kinds[k] < 10 {
			t.Errorf("only %d flows were of the kind %s", kinds[k], k)
		}
	}
}

func randomRoutes(r *rand.Rand) []core.Route {
	var out []core.Route
	seen := map[netip.Prefix]bool{}
	for range r.IntN(12) {
		p := netip.PrefixFrom(randomAddress(r), []int{0, 1, 6, 8, 12, 16, 17, 20, 24, 25, 30, 32}[r.IntN(12)]).Masked()
		hops := []core.NextHop{core.HopNone, core.HopVnetLocal, core.HopPeering, core.HopUplink, core.HopInternet, core.HopVirtualAppliance}
		h := hops[r.IntN(len(hops))]
		if seen[p] || p.Bits() >= 8 && linkLocal.Overlaps(p) {
			continue
		}
		seen[p] = true
		route := core.Route{Name: fmt.Sprintf("r%d", len(out)), Prefix: p, NextHop: h}
		if h == core.HopVirtualAppliance {
			route.Address = netip.MustParseAddr("10.20.0.5") // a member: no appliance
		}
		out = append(out, route)
	}
	return out
}

func randomAddress(r *rand.Rand) netip.Addr {
	list := []string{"10.20.0.5", "10.20.1.4", "10.20.0.2", "10.20.1.77", "10.30.0.4", "198.51.100.2", "203.0.113.9"}
	if r.IntN(3) > 0 {
		return netip.MustParseAddr(list[r.IntN(len(list))])
	}
	base := netip.MustParsePrefix([]string{"10.20.0.0/16", "10.30.0.0/16", "10.0.0.0/8", "192.0.0.0/6"}[r.IntN(4)])
	return nth(base, r.Uint32()>>base.Bits())
}

// expectedWay words what a kernel does for a verdict: the interface, "local" or "nowhere".
func expectedWay(v *vnet, g core.GoalVNet, route string, by core.EffectiveRoute, dst netip.Addr) string {
	held := map[netip.Addr]string{}
	for k, p := range v.ports {
		held[p.spec.Address] = portLink(k)
	}
	local := slices.Contains(v.resolvers(), dst) || slices.ContainsFunc(g.Endpoints, func(e core.GoalEndpoint) bool { return e.Address == dst })
	switch {
	case strings.HasPrefix(route, "NAT gateway"):
		return natInnerLink("u1-egress")
	case strings.HasPrefix(route, "Peering"):
		return peerLink("u1", "hub")
	// The rules, and not the routes, end what follows.
	case local && (by.NextHop == core.HopVnetLocal && by.Reason == "" || slices.Contains(v.resolvers(), dst)):
		return "local"
	case by.NextHop == core.HopInternet && by.Reason == "":
		return natInnerLink("u1-egress")
	case held[dst] != "" && route == "VnetLocal":
		return held[dst]
	}
	return "nowhere"
}

func kernelWay(t *testing.T, v *vnet, iif string, src, dst netip.Addr) string {
	t.Helper()
	list, err := v.at.nl.RouteGetWithOptions(dst.AsSlice(), &netlink.RouteGetOptions{Iif: iif, SrcAddr: src.AsSlice(), Mark: policy.RouteMark})
	if err != nil || len(list) == 0 {
		return "nowhere"
	}
	if list[0].Type == unix.RTN_LOCAL {
		return "local"
	}
	l, err := v.at.nl.LinkByIndex(list[0].LinkIndex)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Name
}
