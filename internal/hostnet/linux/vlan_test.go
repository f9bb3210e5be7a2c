package linux

import (
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/nettest"
)

// These make real VLANs, which takes a kernel that has them: test/vm runs them on Debian's.

func onVLAN(u *core.Uplink) { u.VLAN = core.UplinkVLAN{Parent: "lan0", ID: 7} }

// newVLAN is a network whose addresses are on VLAN 7, with a member on it.
func newVLAN(t *testing.T, change ...func(*Options)) (l *lab, lan string, n *Network, cfg hostnet.Config) {
	t.Helper()
	l = newLab(t)
	lan = newLAN(l)
	vlanLAN(l, lan)
	g := plant("u1", onLAN(onVLAN))
	return l, lan, l.up(change...), hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{plantMember(g, 1)}}
}

// TestVLANIsAlone: frames of another VLAN, and those of none, are another network's, in both
// directions.
func TestVLANIsAlone(t *testing.T) {
	t.Parallel()
	l, lan, n, cfg := newVLAN(t)
	m := cfg.Ports[0]
	l.ip(lan, "link", "add", "link", "lan0", "name", "lan8", "type", "vlan", "id", "8")
	l.ip(lan, "link", "set", "lan8", "up")
	machines := map[string]string{"lan8": "192.168.10.66", "lan0": "192.168.10.67"} // on VLAN 8, and on none
	for dev, address := range machines {
		l.ip(lan, "addr", "add", address+"/24", "dev", dev)
	}
	at := portOf(t, l.set(n, cfg), m)
	v, link := filepath.Join(netnsDir, n.names.vnet("u1")), n.names.uplinkLink("u1", "plant")
	mac := macIn(t, v, link)
	right, wrong, arrived := nettest.Watch(t, "VLAN 7", lan, "lan7"), nettest.Watch(t, "VLAN 8", lan, "lan8"), nettest.Watch(t, "the uplink", v, link)
	for _, address := range machines {
		wantSilence(t, at, address+":80")
	}
	wantGreeting(t, at, lanServer+":80", "lan "+m.Address.String())
	if framesFrom(right, mac) == 0 || framesFrom(wrong, mac) > 0 {
		t.Errorf("of the uplink's frames %d came to VLAN 7 and %d to VLAN 8", framesFrom(right, mac), framesFrom(wrong, mac))
	}
	for _, dev := range []string{"lan8", "lan0", "lan7"} { // the right one comes last
		sendIn(t, lan, dev, mac, nettest.Frame{Src: lanServer, Dst: m.Address.String(), Text: "<through " + dev + ">"})
	}
	soon(t, "the frame of VLAN 7 arrives", func() bool { return arrived.Saw("<through lan7>") > 0 })
	if arrived.Saw("<through lan8>")+arrived.Saw("<through lan0>") > 0 {
		t.Error("frames of VLAN 8 or of no VLAN came to the uplink")
	}
	for dev, want := range map[string]string{"lan8": "", "lan0": "", "lan7": mac.String()} {
		l.ip(lan, "route", "replace", m.Address.String()+"/32", "dev", dev)
		wantARP(t, l, lan, map[string]string{m.Address.String(): want})
	}
	for dev, address := range machines { // what was out of reach was so by its VLAN alone
		l.ip(lan, "addr", "del", address+"/24", "dev", dev)
		l.ip(lan, "addr", "add", address+"/24", "dev", "lan7")
		l.ip(v, "neigh", "flush", "dev", link)
		wantGreeting(t, at, address+":80", "lan "+m.Address.String())
	}
}

func macIn(t *testing.T, space, link string) (mac net.HardwareAddr) {
	t.Helper()
	in(t, space, func() error {
		l, err := netlink.LinkByName(link)
		if err == nil {
			mac = l.Attrs().HardwareAddr
		}
		return err
	})
	return mac
}

func framesFrom(l *nettest.Lookout, mac net.HardwareAddr) (n int) {
	for _, f := range l.Frames() {
		if len(f) >= 12 && string(f[6:12]) == string(mac) {
			n++
		}
	}
	return n
}

func sendIn(t *testing.T, space, dev string, to net.HardwareAddr, f nettest.Frame) {
	t.Helper()
	in(t, space, func() error {
		tap, err := nettest.OpenTap(dev, to)
		if err != nil {
			return err
		}
		defer tap.Close()
		return tap.Send(f)
	})
}

// TestVLANLeavesItsParentAlone: the host keeps the device and its own traffic on it; and the
// VLAN goes, however its network ends.
func TestVLANLeavesItsParentAlone(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*testing.T, *lab, *Network) error{
		"the network is deleted": func(_ *testing.T, l *lab, n *Network) error { l.set(n, hostnet.Config{}); return nil },
		"cleanup":                func(_ *testing.T, l *lab, n *Network) error { return n.CleanUp(l.ctx()) },
		"a crash, and cleanup": func(t *testing.T, l *lab, n *Network) error {
			return errorsOf(n.Close(), again(t, l).CleanUp(l.ctx()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, lan, n, cfg := newVLAN(t)
			decorate(l)
			l.ip(lan, "addr", "add", "192.168.11.5/24", "dev", "lan0")
			before := l.describe("lan0")
			at := portOf(t, l.set(n, cfg), cfg.Ports[0])
			wantGreeting(t, at, lanServer+":80", "lan "+cfg.Ports[0].Address.String())
			wantGreeting(t, l.host, "192.168.11.5:80", "lan 192.168.11.33")
			if diff := cmp.Diff(before, l.describe("lan0")); diff != "" {
				t.Errorf("the VLAN changed its parent (-before +now):\n%s", diff)
			}
			if err := end(t, l, n); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(before, l.describe("lan0")); diff != "" {
				t.Errorf("the VLAN left its parent changed (-before +after):\n%s", diff)
			}
			if left := l.ip(l.host, "-o", "link", "show", "type", "vlan"); left != "" {
				t.Errorf("the host has %s", left)
			}
			l.ip(l.host, "link", "add", "link", "lan0", "name", "own7", "type", "vlan", "id", "7") // the number is free
			if _, err := n.uplinkRecords().load(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestVLANParentUnplugged: the kernel takes a VLAN away with its parent; it is made again
// when that is back.
func TestVLANParentUnplugged(t *testing.T) {
	t.Parallel()
	l, lan, n, cfg := newVLAN(t, func(o *Options) { o.VerifyEvery = -1 })
	at := portOf(t, l.set(n, cfg), cfg.Ports[0])
	wantGreeting(t, at, lanServer+":80", "lan "+cfg.Ports[0].Address.String())
	l.ip(lan, "link", "del", "lan0")
	s, err := n.Set(l.ctx(), cfg)
	if err != nil || len(s.Problems) != 1 || !contains(s.Problems[0].Err.Error(), `uplink plant (vlan 7 of lan0): the host has no device "lan0"`) {
		t.Fatalf("%v, problems %v; want that the parent is gone", err, s.Problems)
	}
	l.ip(l.host, "link", "add", "lan0", "type", "veth", "peer", "name", "lan0", "netns", filepath.Base(lan))
	l.ip(l.host, "link", "set", "lan0", "up")
	l.ip(lan, "link", "set", "lan0", "up")
	vlanLAN(l, lan)
	l.set(n, cfg)
	wantGreeting(t, at, lanServer+":80", "lan "+cfg.Ports[0].Address.String())
}

// TestVLANByDHCP: the server is on that VLAN.
func TestVLANByDHCP(t *testing.T) {
	t.Parallel()
	l, lan, n, _ := newVLAN(t)
	leases := runDnsmasq(l, lan, "--interface=lan7", "--bind-interfaces", "--dhcp-range=192.168.10.140,192.168.10.180,255.255.255.0,2m")
	g := plant("u1", onLAN(func(u *core.Uplink) { onVLAN(u); u.Addressing.Mode = core.AddressingDHCP }))
	_, m, at := l.running(n, g)
	wantGreeting(t, at, lanServer+":80", "lan "+m.Address.String())
	if !strings.Contains(leases(), " "+m.Address.String()+" ") {
		t.Errorf("the member has %s; the server has leased\n%s", m.Address, leases())
	}
}
