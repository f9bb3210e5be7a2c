package linux

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"golang.org/x/sys/unix"
)

// peerOf is a network with one subnet and no rules, whose UID is its name, and which
// names its peers by their UIDs; connected fills in the rest.
func peerOf(name, space string, peers ...string) core.GoalVNet {
	p := netip.MustParsePrefix(space)
	g := core.GoalVNet{
		UID: name, Tenant: core.DefaultTenant, Name: name, AddressSpace: []netip.Prefix{p},
		Subnets: []core.Subnet{{Name: "gateways", Prefix: netip.PrefixFrom(p.Addr(), 24), Delegation: core.DelegationGateways}},
	}
	spaces := map[string]string{"u1": "10.20.0.0/16", "hub": "10.30.0.0/16", "far": "10.40.0.0/16"}
	for _, uid := range peers {
		g.Peers = append(g.Peers, core.GoalPeer{UID: uid, Name: uid, AddressSpace: []netip.Prefix{netip.MustParsePrefix(spaces[uid])}})
	}
	return g
}

// portIn is a member in a network of peerOf.
func portIn(g core.GoalVNet, i, tunnel int) hostnet.Port {
	return hostnet.Port{
		Member: "m-" + g.UID, Generation: 1, VNetUID: g.UID, Subnet: "gateways",
		Address: nth(g.Subnets[0].Prefix, uint32(3+i)), TunnelAddress: nth(linkLocal, uint32(16+tunnel)),
	}
}

// TestPeering connects three networks in a row, and takes one connection away again.
func TestPeering(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	serveIn(t, l.host, "127.0.0.1:5432", "orders")
	spoke, hub, far := peerOf("u1", "10.20.0.0/16", "hub"), peerOf("hub", "10.30.0.0/16", "u1", "far"), peerOf("far", "10.40.0.0/16", "hub")
	hub.Endpoints = []core.GoalEndpoint{{UID: "e", Name: "db", Subnet: "gateways", Address: netip.MustParseAddr("10.30.0.9"), Port: 5432, Target: "127.0.0.1:5432"}}
	a, b, c := portIn(spoke, 1, 1), portIn(hub, 1, 2), portIn(far, 1, 3)
	n := l.up()
	cfg := hostnet.Config{VNets: []core.GoalVNet{spoke, hub, far}, Ports: []hostnet.Port{a, b, c}}
	s := l.set(n, cfg)
	atA, atB, atC := portOf(t, s, a), portOf(t, s, b), portOf(t, s, c)
	for path, p := range map[string]hostnet.Port{atA: a, atB: b, atC: c} {
		serveIn(t, path, p.Address.String()+":80", p.VNetUID)
	}
	wantGreeting(t, atA, "10.30.0.4:80", "hub 10.20.0.4")
	wantGreeting(t, atB, "10.20.0.4:80", "u1 10.30.0.4")
	wantGreeting(t, atB, "10.40.0.4:80", "far 10.30.0.4")
	wantGreeting(t, atA, "10.30.0.9:5432", "orders 127.0.0.1")
	wantUnreached(t, atA, "10.40.0.4:80") // not transitive
	wantUnreached(t, atC, "10.20.0.4:80")
	wantUnreached(t, atA, "10.30.0.2:53") // its resolver answers its own network

	cfg.VNets = []core.GoalVNet{peerOf("u1", "10.20.0.0/16"), peerOf("hub", "10.30.0.0/16", "far"), far}
	l.set(n, cfg)
	wantUnreached(t, atA, "10.30.0.4:80")
	wantGreeting(t, atB, "10.40.0.4:80", "far 10.30.0.4")
}

func wantUnreached(t *testing.T, path, addr string) {
	t.Helper()
	if c, err := dialIn(t, path, addr, 400*time.Millisecond); err == nil {
		t.Errorf("%s was reached from %s", addr, c.LocalAddr())
	}
}

// TestPeeringObeysBothNetworks denies in the source's rules, then in the destination's.
func TestPeeringObeysBothNetworks(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.up()
	deny := func(d core.Direction, port string) core.NetworkSecurityGroup {
		return core.NetworkSecurityGroup{Name: "g", Rules: []core.SecurityRule{{
			Name: "no", Priority: 100, Direction: d, Access: core.Deny, Protocol: core.ProtocolTCP, DestinationPorts: []string{port},
		}}}
	}
	spoke, hub := peerOf("u1", "10.20.0.0/16", "hub"), peerOf("hub", "10.30.0.0/16", "u1")
	spoke.NSGs, hub.NSGs = []core.NetworkSecurityGroup{deny(core.Outbound, "81")}, []core.NetworkSecurityGroup{deny(core.Inbound, "82")}
	spoke.Subnets[0].NSG, hub.Subnets[0].NSG = "g", "g"
	a, b := portIn(spoke, 1, 1), portIn(hub, 1, 2)
	s := l.set(n, hostnet.Config{VNets: []core.GoalVNet{spoke, hub}, Ports: []hostnet.Port{a, b}})
	at := portOf(t, s, a)
	for _, port := range []string{"80", "81", "82"} {
		serveIn(t, portOf(t, s, b), "10.30.0.4:"+port, "hub")
	}
	wantGreeting(t, at, "10.30.0.4:80", "hub 10.20.0.4") // by VirtualNetwork of both
	wantSilence(t, at, "10.30.0.4:81")
	wantSilence(t, at, "10.30.0.4:82")
	for uid, want := range map[string]string{"u1": "g/no (100) outbound", "hub": "g/no (100) inbound"} {
		if counter(t, n.vnets[uid].at.path, want) == 0 {
			t.Errorf("no packet met rule %s of %s", want, uid)
		}
	}
}

// TestPeerCannotPretend sends packets through the veth between two networks, from inside
// one of them, as no member could, with sources that are not that network's.
func TestPeerCannotPretend(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	spoke, hub := peerOf("u1", "10.20.0.0/16", "hub"), peerOf("hub", "10.30.0.0/16", "u1", "far")
	far := peerOf("far", "10.40.0.0/16", "hub")
	a, b := portIn(spoke, 1, 1), portIn(hub, 1, 2)
	n := l.up()
	s := l.set(n, hostnet.Config{VNets: []core.GoalVNet{spoke, hub, far}, Ports: []hostnet.Port{a, b}})
	nft(t, n.vnets["u1"].at.path, "delete", "table", "inet", "sluice") // the neighbour is hostile
	hubAt := n.vnets["hub"].at.path
	for _, c := range []struct{ source, to string }{
		{"10.30.0.77", "10.30.0.4"}, {"198.51.100.7", "10.30.0.4"}, {"10.20.0.4", "10.40.0.4"}, {"10.40.0.4", "10.30.0.4"},
	} {
		before := counter(t, hubAt, "spoofed")
		sendBetween(t, n, "u1", "hub", packetFrom(netip.MustParseAddr(c.source), netip.MustParseAddr(c.to)))
		waitUntil(t, "the packet from "+c.source+" to "+c.to+" is dropped", func() bool { return counter(t, hubAt, "spoofed") > before })
	}
	sniffer := sniffPort(t, portOf(t, s, b))
	sendBetween(t, n, "u1", "hub", packetFrom(a.Address, b.Address))
	waitUntil(t, "a true one arrives", func() bool { src, _, ok := sniffer.next(); return ok && src == a.Address })
}

// TestPeeringAlone says that a network whose peer is not on the host is not connected.
func TestPeeringAlone(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.up()
	for range 2 {
		s, err := n.Set(l.ctx(), hostnet.Config{VNets: []core.GoalVNet{peerOf("u1", "10.20.0.0/16", "hub")}})
		want := "its peering with VirtualNetwork hub is not connected: that network is not on this host"
		if err != nil || len(s.Problems) != 1 || s.Problems[0].Object != "VirtualNetwork/u1" || s.Problems[0].Err.Error() != want {
			t.Errorf("%v, %v", s.Problems, err)
		}
	}
}

// sendBetween sends a frame by the veth from one network to another.
func sendBetween(t *testing.T, n *Network, from, to string, p []byte) {
	t.Helper()
	in(t, n.vnets[from].at.path, func() error {
		i, err := net.InterfaceByName(peerLink(from, to))
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		at := &unix.SockaddrLinklayer{Protocol: unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8, Ifindex: i.Index, Halen: 6}
		copy(at.Addr[:], n.names.mac("peer", to, from))
		return unix.Sendto(fd, withChecksum(p), 0, at)
	})
}

// withChecksum completes an IPv4 header that no kernel will.
func withChecksum(p []byte) []byte {
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(p[i])<<8 | uint32(p[i+1])
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	p[10], p[11] = ^byte(sum>>8), ^byte(sum)
	return p
}
