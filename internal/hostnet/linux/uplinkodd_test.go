package linux

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// machineOn puts another machine on the network of the host's bridge.
func machineOn(l *lab, name, address string) string {
	l.t.Helper()
	ns, dev := l.space(name), name+"0"
	l.ip(l.host, "link", "add", dev, "type", "veth", "peer", "name", dev, "netns", filepath.Base(ns))
	l.ip(l.host, "link", "set", dev, "up", "master", "hbr0")
	l.ip(ns, "link", "set", dev, "up")
	l.ip(ns, "addr", "add", address+"/24", "dev", dev)
	return ns
}

// TestUplinkByDHCPWithASquatter: dnsmasq gives an address that a machine of the network uses
// without having asked; it is declined, and the member has another.
func TestUplinkByDHCPWithASquatter(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := newLAN(l)
	hostBridge(l)
	const taken = "192.168.10.150"
	squatter := machineOn(l, "sq", taken)
	serveIn(t, squatter, "0.0.0.0:80", "squatter")
	g := plant("u1", onLAN(byDHCP))
	ask := asking(g, 1)
	leases := dnsmasq(l, lan, "192.168.10.140", "192.168.10.180", "--dhcp-host=id:00:"+strings.ReplaceAll(fmt.Sprintf("% x", memberClient(ask.Key())), " ", ":")+","+taken)
	n := l.up()
	begun := time.Now()
	_, m, at := l.running(n, g)
	took := time.Since(begun)
	if m.Address.String() == taken || !strings.Contains(leases(), " "+m.Address.String()+" ") || strings.Contains(leases(), " "+taken+" ") {
		t.Errorf("the member has %s; the server has leased\n%s", m.Address, leases())
	}
	if took > 15*time.Second {
		t.Errorf("it took %s", took)
	}
	wantGreeting(t, at, lanServer+":80", "lan "+m.Address.String())
	wantGreeting(t, lan, taken+":80", "squatter "+lanServer)
}

// TestUplinkByDHCPInsists: dnsmasq would give the uplink itself what can't be used, again and
// again, unless it is asked for another.
func TestUplinkByDHCPInsists(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := newLAN(l)
	hostBridge(l)
	g := plant("u1", onLAN(byDHCP))
	leases := dnsmasq(l, lan, "192.168.10.130", "192.168.10.180", "--dhcp-sequential-ip") // begins with a resolver's
	n := l.up()
	l.running(n, g)
	if own := n.vnets["u1"].uplinks["plant"].own; strings.Contains(leases(), " 192.168.10.130 ") || !strings.Contains(leases(), " "+own.String()+" ") {
		t.Errorf("the uplink has %s; the server has leased\n%s", own, leases())
	}
}

// TestUplinkByDHCPWithARogue: a machine of the network answers everybody, with addresses that
// lead nowhere, and refuses what the true server gives.
func TestUplinkByDHCPWithARogue(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := newLAN(l)
	hostBridge(l)
	const rogue = "192.168.10.66"
	handleDHCP(l, machineOn(l, "rg", rogue), "rg0", func(conn net.PacketConn, _ net.Addr, m *dhcpv4.DHCPv4) {
		for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeNak} {
			r, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(net.IPv4(10, 66, 0, 1)),
				dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(rogue))), dhcpv4.WithLeaseTime(3600))
			if err == nil {
				_, _ = conn.WriteTo(r.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 68})
			}
		}
	})
	leases := dnsmasq(l, lan, "192.168.10.140", "192.168.10.180")
	g := plant("u1", onLAN(byDHCP))
	_, m, at := l.running(l.up(), g)
	if !strings.Contains(leases(), " "+m.Address.String()+" ") {
		t.Errorf("the member has %s; the server has leased\n%s", m.Address, leases())
	}
	wantGreeting(t, at, lanServer+":80", "lan "+m.Address.String())
}

// TestUplinkByDHCPByARelay: the server is on another network, and gets what it is sent, a
// release too, by a relay of this one.
func TestUplinkByDHCPByARelay(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := newLAN(l)
	hostBridge(l)
	center := l.space("ce")
	l.ip(lan, "link", "add", "ce0", "type", "veth", "peer", "name", "ce0", "netns", filepath.Base(center))
	l.ip(lan, "addr", "add", "10.77.0.1/24", "dev", "ce0")
	l.ip(lan, "link", "set", "ce0", "up")
	l.ip(center, "addr", "add", "10.77.0.2/24", "dev", "ce0")
	l.ip(center, "link", "set", "ce0", "up")
	l.ip(center, "route", "add", lanNetwork, "via", "10.77.0.1")
	leases := runDnsmasq(l, center, "--interface=ce0", "--bind-interfaces", "--dhcp-range=192.168.10.140,192.168.10.180,255.255.255.0,2m")
	runDnsmasq(l, lan, "--dhcp-relay="+lanServer+",10.77.0.2")
	g := plant("u1", onLAN(byDHCP))
	n := l.up()
	_, m, at := l.running(n, g)
	wantGreeting(t, at, lanServer+":80", "lan "+m.Address.String())
	if !strings.Contains(leases(), " "+m.Address.String()+" ") {
		t.Errorf("the member has %s; the server has leased\n%s", m.Address, leases())
	}
	l.set(n, hostnet.Config{})
	wantReleased(t, leases, "192.168.10.")
}
