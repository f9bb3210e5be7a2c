package e2e

import (
	"fmt"
	"os/exec"
	"testing"
)

// onVLAN puts the far machine's address on VLAN 7 of what joins it to the host, which keeps
// the device. It takes a kernel that has VLANs: test/vm runs it on Debian's.
func onVLAN(t *testing.T, f *far) (dev, uplink string) {
	vlan := "v7-" + f.id
	if exec.Command("ip", "-n", f.ns, "link", "add", "link", f.dev, "name", vlan, "type", "vlan", "id", "7").Run() != nil {
		t.Skip("this kernel has no VLAN devices")
	}
	ip(t, "-n", f.ns, "addr", "del", lanServer+"/24", "dev", f.dev)
	ip(t, "-n", f.ns, "link", "set", vlan, "up")
	ip(t, "-n", f.ns, "addr", "add", lanServer+"/24", "dev", vlan)
	return f.near, fmt.Sprintf("{name: lan, host: h1, vlan: {parent: %s, id: 7}, %s}", f.near, ranged)
}
