package linux

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// natLab is a lab with one member behind one NAT gateway.
type natLab struct {
	*lab
	n   *Network
	cfg hostnet.Config
	at  string // the member's namespace
}

func newNATLab(t *testing.T, change func(*core.GoalNATGateway)) *natLab {
	t.Helper()
	l := newLab(t)
	l.ip(l.world, "route", "add", "203.0.113.0/24", "via", labHostAddr)
	net := corp("u1")
	if change != nil {
		change(&net.NATGateways[0])
	}
	m := member(net, 1, 1)
	x := &natLab{lab: l, n: l.up(), cfg: hostnet.Config{VNets: []core.GoalVNet{net}, Ports: []hostnet.Port{m}}}
	x.at = portOf(t, l.set(x.n, x.cfg), m)
	return x
}

func (l *natLab) gateway() *natGateway { return l.n.vnets["u1"].nats["u1-egress"] }

// report is what the host would tell of its only NAT gateway.
func (l *natLab) report() core.NATGatewayReport {
	l.t.Helper()
	list, err := l.n.NATGateways(l.ctx())
	if err != nil {
		l.t.Fatal(err)
	}
	if len(list) != 1 {
		l.t.Fatalf("%d NAT gateways are reported, not 1", len(list))
	}
	return list[0]
}

// until waits until the report is as wanted.
func (l *natLab) until(what string, ok func(core.NATGatewayReport) bool) core.NATGatewayReport {
	l.t.Helper()
	var r core.NATGatewayReport
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		l.gateway().meter.took = 0 // look each time
		if r = l.report(); ok(r) {
			return r
		}
	}
	l.t.Fatalf("%s: the report is %+v", what, r)
	return r
}

func conditions(r core.NATGatewayReport) (out []string) {
	for _, c := range r.Conditions {
		out = append(out, c.Type)
	}
	return out
}

// sniff sees every IPv4 packet that comes to an interface.
func sniff(t testing.TB, path, link string) (packets func() [][]byte) {
	t.Helper()
	fd := -1
	in(t, path, func() error {
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		const proto = unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: i.Index})
	})
	t.Cleanup(func() { unix.Close(fd) })
	return func() (out [][]byte) {
		buf := make([]byte, 2048)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return out
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype != unix.PACKET_OUTGOING {
				out = append(out, bytes.Clone(buf[:n]))
			}
		}
	}
}

// TestNATFlowTimesOut lets a flow idle for longer than its time, which the kernel takes in
// seconds: nobody is told, and later traffic of either side is answered with a reset.
func TestNATFlowTimesOut(t *testing.T) {
	t.Parallel()
	for _, leaves := range []string{"host", "203.0.113.8/30"} {
		for _, side := range []string{"member", "world"} {
			t.Run(strings.ReplaceAll(leaves, "/", "-")+" "+side, func(t *testing.T) {
				t.Parallel()
				l := newNATLab(t, func(g *core.GoalNATGateway) {
					g.PublicAddresses, g.IdleTimeout = []string{leaves}, core.Duration(2*time.Second)
				})
				client, server := l.connect()
				echo(t, client, "before")
				inMember, inWorld := sniff(t, l.at, ethName), sniff(t, l.world, "up0")
				l.until("timed out", func(r core.NATGatewayReport) bool {
					return r.Connections.Total == 0 && r.Connections.TimedOut == 1
				})
				for where, seen := range map[string]func() [][]byte{"member": inMember, "world": inWorld} {
					for _, p := range seen() {
						if p[9] == unix.IPPROTO_TCP && p[33]&0x05 != 0 { // FIN or RST
							t.Errorf("the time-out was not silent: the %s was sent flags %#x", where, p[33])
						}
					}
				}
				late := map[string]net.Conn{"member": client, "world": server}[side]
				late.SetDeadline(time.Now().Add(10 * time.Second))
				if _, err := late.Write([]byte("after\n")); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadAll(late); err == nil || !strings.Contains(err.Error(), unix.ECONNRESET.Error()) {
					t.Errorf("the %s's later traffic got %v, not a reset", side, err)
				}
			})
		}
	}
}

// connect makes one connection from the member to the world.
func (l *natLab) connect() (client, server net.Conn) {
	l.t.Helper()
	accepted := make(chan net.Conn, 1)
	var listener net.Listener
	in(l.t, l.world, func() (err error) {
		listener, err = net.Listen("tcp4", labWorldAddr+":0")
		return err
	})
	var work sync.WaitGroup
	l.t.Cleanup(func() {
		listener.Close()
		work.Wait()
	})
	work.Go(func() {
		if c, err := listener.Accept(); err == nil {
			accepted <- c
		}
	})
	client, err := dialIn(l.t, l.at, listener.Addr().String(), 10*time.Second)
	if err != nil {
		l.t.Fatal(err)
	}
	server = <-accepted
	l.t.Cleanup(func() { server.Close() })
	work.Go(func() { // echo lines
		buf := make([]byte, 64)
		if n, err := server.Read(buf); err == nil {
			server.Write(buf[:n])
		}
	})
	return client, server
}

func TestNATTimers(t *testing.T) {
	t.Parallel()
	l := newNATLab(t, func(g *core.GoalNATGateway) { g.IdleTimeout = core.Duration(90 * time.Minute) })
	want := map[string]string{
		"tcp_timeout_established": "5400", "tcp_timeout_close_wait": "5400", "tcp_timeout_unacknowledged": "5400", "tcp_timeout_max_retrans": "5400",
		"tcp_timeout_time_wait": "65", "tcp_timeout_fin_wait": "65", "tcp_timeout_last_ack": "65", "tcp_timeout_close": "16",
		"tcp_timeout_syn_sent": "30", "tcp_timeout_syn_recv": "30", "udp_timeout": "240", "udp_timeout_stream": "240",
	}
	in(t, l.gateway().at.path, func() error {
		for key, value := range want {
			if got, err := readSysctl("netfilter/nf_conntrack_" + key); err != nil || got != value {
				t.Errorf("%s is %q, %v; want %s", key, got, err, value)
			}
		}
		return nil
	})
	// The host tracks the same flows, and must not be the first to forget one.
	in(t, l.at, func() error {
		c, err := net.Dial("udp4", labWorldAddr+":4000")
		if err == nil {
			_, err = c.Write([]byte("x"))
			c.Close()
		}
		return err
	})
	client, _ := l.connect()
	echo(t, client, "a line")
	wantTimeout := map[uint8]uint32{unix.IPPROTO_UDP: 270, unix.IPPROTO_TCP: 5430}
	in(t, l.host, func() error {
		list, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		for _, f := range list {
			if want := wantTimeout[f.Forward.Protocol]; f.TimeOut > want || f.TimeOut < want-25 {
				t.Errorf("the host forgets a flow of protocol %d after %d s, not %d", f.Forward.Protocol, f.TimeOut, want)
			}
		}
		if len(list) != 2 {
			t.Errorf("the host tracks %d flows, not 2", len(list))
		}
		return err
	})
}

func TestNATReport(t *testing.T) {
	t.Parallel()
	l := newNATLab(t, func(g *core.GoalNATGateway) { g.PublicAddresses = []string{"203.0.113.8/31", "203.0.113.77"} })
	first := l.until("nothing yet", func(core.NATGatewayReport) bool { return true })
	if !first.Up || first.Connections != (core.NATConnections{}) || len(first.Conditions) != 0 || first.Name != "egress" || first.VNet != "corp" {
		t.Errorf("a NAT gateway at rest reports %+v", first)
	}
	var of []string
	for _, p := range first.Ports {
		of = append(of, fmt.Sprint(p.Address, " ", p.Protocol, " ", p.Used, "/", p.Of))
	}
	want := []string{"203.0.113.8 TCP 0/64512", "203.0.113.8 UDP 0/64512", "203.0.113.9 TCP 0/64512", "203.0.113.9 UDP 0/64512", "203.0.113.77 TCP 0/64512", "203.0.113.77 UDP 0/64512"}
	if !slices.Equal(of, want) {
		t.Errorf("ports %v, want %v", of, want)
	}
	for range 20 {
		client, _ := l.connect()
		echo(t, client, "a line")
	}
	r := l.until("20 connections", func(r core.NATGatewayReport) bool { return r.Connections.Established == 20 })
	used := 0
	for _, p := range r.Ports {
		if used += p.Used; p.Protocol == core.ProtocolUDP && p.Used > 0 {
			t.Errorf("%d UDP ports are taken by TCP connections", p.Used)
		}
	}
	if used != 20 || r.Connections.Total != 20 || r.Connections.Attempted != 20 || r.Connections.Failed != 0 || r.PacketsOut < 60 || r.BytesIn < 20*40 || r.DroppedPackets != 0 {
		t.Errorf("20 connections that go on: %+v", r)
	}
	l.cfg.VNets[0].NATGateways[0].PublicAddresses = []string{"203.0.113.8/31"} // the rules are replaced
	l.set(l.n, l.cfg)
	if again := l.report(); again.Connections.Attempted != 20 || again.PacketsOut < r.PacketsOut {
		t.Errorf("after a change of the rules: %+v, before: %+v", again, r)
	}
}

// TestNATAlarm: from 85 % on there is a condition, below 80 % there is none again.
func TestNATAlarm(t *testing.T) {
	t.Parallel()
	n := &Network{alarms: natAlarms{}}
	v := &natView{uid: "u"}
	for i, c := range []struct {
		used  int
		alarm bool
	}{{54835, false}, {54836, true}, {64512, true}, {51610, true}, {51609, false}, {54835, false}} {
		ports := []core.NATPorts{{Address: "203.0.113.8", Protocol: core.ProtocolTCP, Used: c.used, Of: 64512}}
		got := n.exhaustion(v, ports, natReading{flows: 1, max: 100})
		if (len(got) == 1) != c.alarm {
			t.Errorf("%d: %d of 64512 ports: %+v", i, c.used, got)
		}
	}
	got := n.exhaustion(v, nil, natReading{flows: 85, max: 100})
	if len(got) != 1 || got[0].Type != core.NATTrackingRunningOut {
		t.Errorf("85 of 100 flows: %+v", got)
	}
}

// TestNATSaysWhichFirewallBlocksIt puts the chains there that Docker makes.
func TestNATSaysWhichFirewallBlocksIt(t *testing.T) {
	t.Parallel()
	l := newNATLab(t, nil)
	serveIn(t, l.world, labWorldAddr+":80", "world")
	wantGreeting(t, l.at, labWorldAddr+":80", "world "+labHostAddr)
	if r := l.report(); !r.Up || len(r.Conditions) != 0 {
		t.Errorf("before: %+v", r)
	}
	nft(t, l.host, "add table ip filter; add chain ip filter DOCKER-USER; add chain ip filter FORWARD { type filter hook forward priority filter; policy drop; }; add rule ip filter FORWARD jump DOCKER-USER")
	wantSilence(t, l.at, labWorldAddr+":80")
	r := l.until("blocked", func(r core.NATGatewayReport) bool { return len(r.Conditions) > 0 })
	links := l.n.names.hostLinks()
	if c := r.Conditions[0]; r.Up || c.Type != core.NATForwardingBlocked ||
		!contains(c.Message, "chain FORWARD of table ip filter", "Docker", "packets were dropped") ||
		!contains(c.Hint, "iptables -I DOCKER-USER -i '"+links+"+' -j ACCEPT", "-o '"+links+"+'", "ESTABLISHED") {
		t.Errorf("blocked: %+v", r)
	}
	// What the hint says, as nft puts it where there is no iptables.
	nft(t, l.host, fmt.Sprintf(`add rule ip filter DOCKER-USER iifname "%s*" accept; add rule ip filter DOCKER-USER oifname "%s*" ct state established,related accept`, links, links))
	wantGreeting(t, l.at, labWorldAddr+":80", "world "+labHostAddr)
	l.until("opened", func(r core.NATGatewayReport) bool { return r.Up && len(r.Conditions) == 0 })
}

// TestNATWarnsBeforeTheFirstPacket: a chain that drops by default and does not know us.
func TestNATWarnsBeforeTheFirstPacket(t *testing.T) {
	t.Parallel()
	l := newNATLab(t, nil)
	nft(t, l.host, "add table inet fw; add chain inet fw through { type filter hook forward priority filter; policy drop; }")
	r := l.report()
	if r.Up || len(r.Conditions) != 1 || !contains(r.Conditions[0].Message, "chain through of table inet fw", "will be dropped") ||
		!contains(r.Conditions[0].Hint, "nft insert rule inet fw through iifname") {
		t.Errorf("closed: %+v", r)
	}
	for command := range strings.SplitSeq(strings.ReplaceAll(r.Conditions[0].Hint, "'", ""), "; ") {
		if out := nft(t, l.host, strings.TrimPrefix(command, "nft ")); out != "" {
			t.Fatalf("%s: %s", command, out)
		}
	}
	if r := l.report(); !r.Up || len(r.Conditions) != 0 {
		t.Errorf("opened as the hint says: %+v", r)
	}
	serveIn(t, l.world, labWorldAddr+":80", "world")
	wantGreeting(t, l.at, labWorldAddr+":80", "world "+labHostAddr)
}

// TestNATLeavesByEveryRoute: replies come in where the routing table sends packets out.
func TestNATLeavesByEveryRoute(t *testing.T) {
	t.Parallel()
	l := newNATLab(t, nil)
	other := l.space("o")
	l.ip(l.host, "link", "add", "vpn0", "type", "veth", "peer", "name", "vpn0", "netns", "sluicetest-"+l.instance+"-o")
	l.ip(l.host, "addr", "add", "192.168.7.1/24", "dev", "vpn0")
	l.ip(l.host, "link", "set", "vpn0", "up")
	l.ip(other, "addr", "add", "192.168.7.2/24", "dev", "vpn0")
	l.ip(other, "addr", "add", "172.30.0.1/32", "dev", "lo")
	l.ip(other, "link", "set", "vpn0", "up")
	l.ip(l.host, "route", "add", "172.30.0.0/16", "via", "192.168.7.2", "table", "77")
	l.ip(l.host, "rule", "add", "to", "172.30.0.0/16", "lookup", "77")
	serveIn(t, other, "172.30.0.1:80", "far")
	l.n.opts.VerifyEvery = -1
	l.set(l.n, l.cfg)
	wantGreeting(t, l.at, "172.30.0.1:80", "far 192.168.7.1")
	if now := l.sysctl("ipv4/conf/vpn0/forwarding"); now != "1" {
		t.Errorf("forwarding on vpn0 is %s", now)
	}
	l.ip(l.host, "link", "del", "vpn0")
	if r := l.set(l.n, l.cfg); len(r.Ports) != 1 {
		t.Error("an uplink that went away takes the ports with it")
	}
}

func TestNATRefusesTheHostsOwnAddress(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	net := corp("u1")
	net.NATGateways[0].PublicAddresses = []string{labHostAddr}
	n := l.up()
	s, err := n.Set(l.ctx(), hostnet.Config{VNets: []core.GoalVNet{net}})
	if err != nil || len(s.Problems) != 1 || !contains(s.Problems[0].Err.Error(), labHostAddr+" is the host's own") {
		t.Errorf("%v, %+v", err, s.Problems)
	}
	r, err := n.NATGateways(l.ctx())
	if err != nil || len(r) != 1 || r[0].Up || !slices.Equal(conditions(r[0]), []string{core.NATNotMade}) || r[0].Conditions[0].Hint == "" {
		t.Errorf("%v, %+v", err, r)
	}
}

// TestSeveralNATGatewaysOfOneNetwork: each subnet leaves by its own.
func TestSeveralNATGatewaysOfOneNetwork(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.ip(l.world, "route", "add", "203.0.113.0/24", "via", labHostAddr)
	serveIn(t, l.world, labWorldAddr+":80", "world")
	g := corp("u1")
	g.Subnets = append(g.Subnets,
		core.Subnet{Name: "more", Prefix: netip.MustParsePrefix("10.20.2.0/24"), NATGateway: "egress"},
		core.Subnet{Name: "other", Prefix: netip.MustParsePrefix("10.20.3.0/24"), NATGateway: "second"},
		core.Subnet{Name: "none", Prefix: netip.MustParsePrefix("10.20.4.0/24")})
	g.NATGateways[0].PublicAddresses = []string{"203.0.113.8"}
	g.NATGateways = append(g.NATGateways, core.GoalNATGateway{UID: "u1-second", NATGateway: core.NATGateway{Name: "second", VNet: "corp", PublicAddresses: []string{"203.0.113.9"}}})
	var ports []hostnet.Port
	for i, s := range []string{"gateways", "more", "other", "none"} {
		p := member(g, i+1, i+1)
		sub, _ := subnetOf(g, s)
		p.Subnet, p.Address = s, nth(sub.Prefix, 4)
		ports = append(ports, p)
	}
	s := l.set(l.up(), hostnet.Config{VNets: []core.GoalVNet{g}, Ports: ports})
	for i, want := range []string{"203.0.113.8", "203.0.113.8", "203.0.113.9"} {
		wantGreeting(t, portOf(t, s, ports[i]), labWorldAddr+":80", "world "+want)
	}
	if c, err := dialIn(t, portOf(t, s, ports[3]), labWorldAddr+":80", 400*time.Millisecond); err == nil {
		t.Errorf("a subnet without a NAT gateway got out, from %s", c.LocalAddr())
	}
}
