package linux

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestVLANLink: what the kernel is asked for, which few test machines can make.
func TestVLANLink(t *testing.T) {
	t.Parallel()
	n := &Network{names: names{"abc"}}
	u := core.Uplink{Name: "lan", VLAN: core.UplinkVLAN{Parent: "eth1", ID: 4094}}
	rec := n.recordOf(core.GoalVNet{UID: "u1", Name: strings.Repeat("long", 100)}, u)
	l := vlanLink(u, rec, 7, 42)
	at := l.Attrs()
	if l.VlanId != 4094 || l.VlanProtocol != netlink.VLAN_PROTOCOL_8021Q || l.Type() != "vlan" {
		t.Errorf("a %s %d of protocol %v", l.Type(), l.VlanId, l.VlanProtocol)
	}
	if at.Name != n.names.uplinkLink("u1", "lan") || at.ParentIndex != 7 || at.Namespace != netlink.NsFd(42) {
		t.Errorf("%s on %d in %v", at.Name, at.ParentIndex, at.Namespace)
	}
	if at.TxQLen >= 0 || at.MTU != 0 || len(at.Alias) > 255 || !strings.HasSuffix(at.Alias, "vlan 4094 of eth1") {
		t.Errorf("queue %d, MTU %d, alias %q; want the kernel's own, and a name for people", at.TxQLen, at.MTU, at.Alias)
	}
}

func TestVLANErrors(t *testing.T) {
	t.Parallel()
	u := core.Uplink{Name: "lan", VLAN: core.UplinkVLAN{Parent: "eth1", ID: 7}}
	for name, c := range map[string]struct {
		err  error
		want []string // class, and in message and hint
	}{
		"there is one":        {unix.EEXIST, []string{"conflict", "uplink lan (vlan 7 of eth1)", "the host has VLAN 7 of eth1 already", "remove that device"}},
		"none in the kernel":  {unix.EOPNOTSUPP, []string{"unavailable", "uplink lan (vlan 7 of eth1)", "kernel makes no VLAN devices", "modprobe 8021q"}},
		"the parent is gone":  {unix.ENODEV, []string{"internal", "uplink lan (vlan 7 of eth1)", "making VLAN 7 of eth1: no such device"}},
		"a parent of no VLAN": {unix.EINVAL, []string{"internal", "making VLAN 7 of eth1: invalid argument"}},
		"no right to":         {unix.EPERM, []string{"denied", "making VLAN 7 of eth1: operation not permitted", "CAP_NET_ADMIN"}},
	} {
		e := errs.As(uplinkError(u, vlanError(u, c.err)))
		if text := fmt.Sprint(e.Class) + ": " + e.Error() + "; " + e.Hint; !contains(strings.ToLower(text), lower(c.want)...) {
			t.Errorf("%s: %q; want %q in it", name, text, c.want)
		}
	}
}

func lower(list []string) (out []string) {
	for _, s := range list {
		out = append(out, strings.ToLower(s))
	}
	return out
}
