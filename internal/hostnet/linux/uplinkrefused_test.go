package linux

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

func TestUplinkRefusals(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(*lab)
		uplink  func(*core.Uplink)
		want    []string // in the message and the hint
	}{
		"no such device":    {nil, func(u *core.Uplink) { u.Device = "lan9" }, []string{`no device "lan9"`, "lan0", "up0"}},
		"the default route": {nil, func(u *core.Uplink) { u.Device = "up0" }, []string{"default route leads through up0", "force: true"}},
		"a bridge's port":   {hostBridge, onDevice, []string{"in use: it is a port of hbr0", "bridge: hbr0"}},
		"a bridge":          {hostBridge, func(u *core.Uplink) { u.Device = "hbr0" }, []string{"is a bridge", "bridge: hbr0"}},
		"no bridge":         {nil, func(u *core.Uplink) { u.Bridge = "lan0" }, []string{"lan0 is no bridge", "device: lan0"}},
		"no TUN":            {nil, func(u *core.Uplink) { u.TUN = "lan0" }, []string{"not a TUN", "device: lan0"}},
		"a macvlan on it": {func(l *lab) {
			l.ip(l.host, "link", "add", "link", "lan0", "name", "mv0", "type", "macvlan")
		}, onDevice, []string{"in use: the device mv0 stands on it", "mv0"}},
		"no VLANs in the kernel": {withoutVLANs, func(u *core.Uplink) {
			u.VLAN = core.UplinkVLAN{Parent: "lan0", ID: 7}
		}, []string{"vlan 7 of lan0", "kernel makes no VLAN devices", "modprobe 8021q", "CONFIG_VLAN_8021Q"}},
		"a VLAN that the host has": {func(l *lab) {
			if !l.tries(l.host, "link", "add", "link", "lan0", "name", "own7", "type", "vlan", "id", "7") {
				l.t.Skip("this kernel has no VLAN devices")
			}
		}, onVLAN, []string{"the host has VLAN 7 of lan0 already", "remove that device"}},
		"a parent that is not there": {nil, func(u *core.Uplink) {
			u.VLAN = core.UplinkVLAN{Parent: "lan9", ID: 7}
		}, []string{`no device "lan9"`, "lan0", "up0"}},
		"a parent that has no VLANs": {nil, func(u *core.Uplink) {
			u.VLAN = core.UplinkVLAN{Parent: "lo", ID: 7}
		}, []string{"vlan 7 of lo", "lo is no Ethernet device (loopback), and has no VLANs", "name the NIC"}},
		"a parent that is down": {func(l *lab) { l.ip(l.host, "link", "set", "lan0", "down") }, func(u *core.Uplink) {
			u.VLAN = core.UplinkVLAN{Parent: "lan0", ID: 7}
		}, []string{"vlan 7 of lan0", "is down", "ip link set lan0 up"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			newLAN(l)
			if c.prepare != nil {
				c.prepare(l)
			}
			before := append(l.describe("lan0"), l.describe("up0")...)
			g := plant("u1", onLAN(c.uplink))
			n := l.up()
			s, err := n.Set(l.ctx(), hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{plantMember(g, 1)}})
			if err != nil || len(s.Problems) != 1 {
				t.Fatalf("%v, problems %v; want one", err, s.Problems)
			}
			e := errs.As(s.Problems[0].Err)
			if text := s.Problems[0].Object + ": " + e.Message + "; " + e.Hint; !contains(text, append(c.want, "VirtualNetwork/plant: uplink plant (")...) {
				t.Errorf("the problem is %q; want %q in it", text, c.want)
			}
			if diff := cmp.Diff(before, append(l.describe("lan0"), l.describe("up0")...)); diff != "" {
				t.Errorf("a refused uplink changed the host (-was +is):\n%s", diff)
			}
		})
	}
}

func withoutVLANs(l *lab) {
	if l.tries(l.host, "link", "add", "link", "lan0", "name", "lan7", "type", "vlan", "id", "7") {
		l.t.Skip("this kernel has VLAN devices")
	}
}

// TestUplinkUnplugged: a device that goes is a problem with a reason, and taken again
// when it is back.
func TestUplinkUnplugged(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := newLAN(l)
	g := plant("u1", onLAN(onDevice))
	m := plantMember(g, 1)
	n := l.up(func(o *Options) { o.VerifyEvery = -1 })
	cfg := hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{m}}
	at := portOf(t, l.set(n, cfg), m)
	wantGreeting(t, at, lanServer+":80", "lan "+m.Address.String())
	l.ip(lan, "link", "del", "lan0") // and with it the other end
	s, err := n.Set(l.ctx(), cfg)
	if err != nil || len(s.Problems) != 1 || !contains(s.Problems[0].Err.Error(), `uplink plant (device lan0): the host has no device "lan0"`) {
		t.Fatalf("%v, problems %v; want that the device is gone", err, s.Problems)
	}
	l.ip(l.host, "link", "add", "lan0", "type", "veth", "peer", "name", "lan0", "netns", filepath.Base(lan))
	l.ip(lan, "link", "set", "lan0", "up")
	l.ip(lan, "addr", "add", lanServer+"/24", "dev", "lan0")
	l.set(n, cfg)
	wantGreeting(t, at, lanServer+":80", "lan "+m.Address.String())
}

func TestUplinkForced(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	before := l.describe("up0")
	g := plant("u1", onLAN(func(u *core.Uplink) { u.Device, u.Force = "up0", true }))
	n := l.up()
	l.set(n, hostnet.Config{VNets: []core.GoalVNet{g}})
	if l.tries(l.host, "link", "show", "up0") {
		t.Error("the host has the device still")
	}
	l.set(n, hostnet.Config{})
	if diff := cmp.Diff(before, l.describe("up0")); diff != "" {
		t.Errorf("the device came back changed (-was +is):\n%s", diff)
	}
}
