package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func isNotExist(err error) bool { return errors.Is(err, os.ErrNotExist) }

// borrow takes a device of the host into V. It gets its name there before it is moved:
// at each step it can be found by its record.
func (n *Network) borrow(at *space, u core.Uplink, rec uplinkRecord) (netlink.Link, error) {
	records := n.uplinkRecords()
	list, err := records.load()
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(list, rec.is); i >= 0 { // it came half the way, or was unplugged
		if err := errors.Join(n.giveBack(n.host, nil, list[i]), records.drop(rec)); err != nil {
			return nil, err
		}
		list = slices.Delete(list, i, i+1)
	}
	link, err := n.hostDevice(u.Device+u.TUN, list)
	if err != nil {
		return nil, err
	}
	if err := n.mayBorrow(link, u); err != nil {
		return nil, err
	}
	if rec.Lent, err = n.host.lend(link); err != nil {
		return nil, fmt.Errorf("reading how it is: %w", err)
	}
	if err := records.put(rec); err != nil {
		return nil, fmt.Errorf("remembering how it is: %w", err)
	}
	err = errors.Join(n.host.nl.LinkSetDown(link), n.host.nl.LinkSetName(link, rec.Link),
		n.host.nl.LinkSetAlias(link, shorten(rec.why(), 250)))
	if err == nil {
		err = n.host.nl.LinkSetNsFd(link, int(at.file.Fd()))
	}
	if err != nil {
		return nil, errors.Join(err, n.giveBack(n.host, at, rec), records.drop(rec))
	}
	n.log.Info("a device of the host is lent to an uplink", "device", rec.Lent.Name, "vnet", rec.VNet, "uplink", rec.Uplink)
	return at.nl.LinkByName(rec.Link)
}

// hostDevice finds a device of the host, or says what there is instead.
func (n *Network) hostDevice(name string, list []uplinkRecord) (netlink.Link, error) {
	link, err := n.host.nl.LinkByName(name)
	if err == nil || !gone(err) {
		return link, err
	}
	for _, r := range list {
		if r.Lent != nil && r.Lent.Name == name {
			return nil, errs.New(errs.Conflict, "the device is in use: %s has it", r.why()).WithHint("use another device, or remove that uplink")
		}
	}
	links, err := n.host.links()
	if err != nil {
		return nil, err
	}
	have := slices.DeleteFunc(sortedKeys(links.index), func(s string) bool { return s == "lo" || n.isHostLink(s) })
	return nil, errs.New(errs.NotFound, "the host has no device %q", name).
		WithHint("it has %s; name one of them, or make %s", strings.Join(have, ", "), name)
}

// mayBorrow refuses a device that the host would miss, or that can't be moved.
func (n *Network) mayBorrow(link netlink.Link, u core.Uplink) error {
	at := link.Attrs()
	arp := at.EncapType == "ether"
	switch {
	case n.isInstallation(at.Name):
		return errs.New(errs.Conflict, "%s was made by Sluice itself", at.Name).WithHint("name a device of the host's own")
	case link.Type() == "bridge":
		return errs.New(errs.Invalid, "%s is a bridge, which can't leave the host", at.Name).WithHint("write bridge: %s", at.Name)
	case at.MasterIndex != 0:
		return errs.New(errs.Conflict, "%s is in use: it is a port of %s", at.Name, n.hostName(at.MasterIndex)).
			WithHint("write bridge: %s, or take the device out of it", n.hostName(at.MasterIndex))
	case u.Device != "" && !arp:
		return errs.New(errs.Invalid, "%s has no ARP (%s)", at.Name, link.Type()).WithHint("write tun: %s", at.Name)
	case u.TUN != "" && arp:
		return errs.New(errs.Invalid, "%s is an Ethernet device, not a TUN", at.Name).WithHint("write device: %s", at.Name)
	}
	if above, err := n.standsOn(at.Index); err != nil {
		return err
	} else if above != "" {
		return errs.New(errs.Conflict, "%s is in use: the device %s stands on it", at.Name, above).
			WithHint("use a VLAN of %s of its own, or remove %s", at.Name, above)
	}
	defaults, err := n.defaultDevices()
	if err != nil {
		return err
	}
	if slices.Contains(defaults, at.Index) && !u.Force {
		return errs.New(errs.Conflict, "the host's default route leads through %s: the host would lose its own network", at.Name).
			WithHint("use another device or a VLAN of it; force: true takes it all the same")
	}
	return nil
}

func (n *Network) hostName(index int) string {
	l, err := n.host.links()
	if err != nil {
		return "another device"
	}
	return l.name[index]
}

// standsOn names a device of the host that uses another as its lower one.
func (n *Network) standsOn(index int) (string, error) {
	list, err := retryDump(n.host.nl.LinkList)
	for _, l := range list {
		if l.Attrs().ParentIndex == index && l.Type() != "veth" {
			return l.Attrs().Name, nil
		}
	}
	return "", err
}

// defaultDevices lists what the host's default routes lead through, IPv6 too.
func (n *Network) defaultDevices() ([]int, error) {
	routes, err := retryDump(func() ([]netlink.Route, error) {
		return n.host.nl.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	var out []int
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones != 0 {
				continue
			}
		}
		out = append(append(out, r.LinkIndex), hops(r)...)
	}
	return out, err
}

// addVLAN makes a VLAN of a device of the host, in V from its birth.
func (n *Network) addVLAN(at *space, u core.Uplink, rec uplinkRecord) (netlink.Link, error) {
	list, err := n.uplinkRecords().load()
	if err != nil {
		return nil, err
	}
	parent, err := n.hostDevice(u.VLAN.Parent, list)
	if err != nil {
		return nil, err
	}
	if kind := parent.Attrs().EncapType; kind != "ether" {
		return nil, errs.New(errs.Invalid, "%s is no Ethernet device (%s), and has no VLANs", u.VLAN.Parent, kind).
			WithHint("name the NIC, or the bond or bridge, that the VLAN's frames come to")
	}
	if !isUp(parent) {
		return nil, errs.New(errs.Conflict, "the device %s is down", u.VLAN.Parent).WithHint("ip link set %s up", u.VLAN.Parent)
	}
	if err := n.uplinkRecords().put(rec); err != nil {
		return nil, err
	}
	if err = n.host.nl.LinkAdd(vlanLink(u, rec, parent.Attrs().Index, at.file.Fd())); err == nil {
		return at.nl.LinkByName(rec.Link)
	}
	return nil, errors.Join(vlanError(u, err), n.uplinkRecords().drop(rec))
}

// vlanLink is what the kernel is asked for: a VLAN of a device in the asker's namespace, born
// in another.
func vlanLink(u core.Uplink, rec uplinkRecord, parent int, into uintptr) *netlink.Vlan {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.Namespace = rec.Link, parent, netlink.NsFd(into)
	attrs.Alias = shorten(rec.why(), 250)
	return &netlink.Vlan{LinkAttrs: attrs, VlanId: u.VLAN.ID, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
}

func vlanError(u core.Uplink, err error) error {
	switch {
	case errors.Is(err, unix.EEXIST):
		return errs.New(errs.Conflict, "the host has VLAN %d of %s already", u.VLAN.ID, u.VLAN.Parent).
			WithHint("remove that device, or name it with device: in place of vlan:")
	case errors.Is(err, unix.EOPNOTSUPP):
		return errs.New(errs.Unavailable, "the host's kernel makes no VLAN devices: %w", err).
			WithHint("modprobe 8021q; a kernel without CONFIG_VLAN_8021Q has none: have the switch or the hypervisor give the host an untagged device, and name that with device: or bridge:")
	}
	return fmt.Errorf("making VLAN %d of %s: %w", u.VLAN.ID, u.VLAN.Parent, err)
}

// joinBridge keeps a veth between V and a bridge of the host.
func (n *Network) joinBridge(ctx context.Context, at *space, u core.Uplink, rec uplinkRecord) (netlink.Link, error) {
	bridge, err := n.hostDevice(u.Bridge, nil)
	if err != nil {
		return nil, err
	}
	if bridge.Type() != "bridge" {
		return nil, errs.New(errs.Invalid, "%s is no bridge but a %s", u.Bridge, bridge.Type()).WithHint("write device: %s", u.Bridge)
	}
	if !isUp(bridge) {
		return nil, errs.New(errs.Conflict, "the bridge %s is down", u.Bridge).WithHint("ip link set %s up", u.Bridge)
	}
	if err := n.uplinkRecords().put(rec); err != nil {
		return nil, err
	}
	if err := n.guardBridges(ctx, n.host, uplinkRecord{}); err != nil {
		return nil, err
	}
	port, mac := n.names.bridgePort(rec.VNetUID, rec.Uplink), func(end string) []byte { return n.names.mac("uplink", rec.VNetUID, rec.Uplink, end) }
	ends, err := ensurePairs(ctx, pair{end{at, rec.Link, mac("vnet"), shorten(rec.why(), 250)}, end{n.host, port, mac("host"), ""}})
	if err != nil {
		return nil, err
	}
	if err := n.host.nl.LinkSetAlias(ends[1], shorten(rec.why(), 250)); err != nil {
		return nil, err
	}
	if err := n.host.do(func() error {
		return writeAll([]sysctl{{key: "ipv6/conf/" + port + "/disable_ipv6", value: "1", optional: true}})
	}); err != nil {
		return nil, err
	}
	if ends[1].Attrs().MasterIndex != bridge.Attrs().Index {
		if err := n.host.nl.LinkSetMaster(ends[1], bridge); err != nil {
			return nil, fmt.Errorf("becoming a port of it: %w", err)
		}
	}
	// A spanning tree never begins behind this port: one that appears closes it.
	return ends[0], n.host.nl.LinkSetGuard(ends[1], true)
}

// guardBridges keeps the host's own stack out of reach of our ports on its bridges: the
// table is there while there is such a port. Leaving is a record that is about to go.
func (n *Network) guardBridges(ctx context.Context, host *space, leaving uplinkRecord) error {
	list, err := n.uplinkRecords().load()
	if err != nil {
		return err
	}
	needed := slices.ContainsFunc(list, func(r uplinkRecord) bool {
		return strings.HasPrefix(r.Source, "bridge ") && !r.is(leaving)
	})
	rules, err := newRuleset(host)
	if err != nil {
		return err
	}
	defer rules.close()
	tables, err := rules.tables()
	if err != nil || slices.Contains(tables, n.names.bridgeTable()) == needed {
		return err
	}
	return rules.transact(ctx, n.names.bridgeGuard(needed), true)
}

// bridgeTable is the nftables table of the family bridge in the host's own namespace.
func (n names) bridgeTable() string { return n.hostTable() + "-bridges" }

func (n names) bridgeGuard(needed bool) string {
	remove := fmt.Sprintf("table bridge %s {}\ndelete table bridge %s\n", n.bridgeTable(), n.bridgeTable())
	if !needed {
		return remove
	}
	ours := fmt.Sprintf("%q", n.hostLinks()+"*")
	return remove + fmt.Sprintf(`table bridge %s {
	chain input {
		type filter hook input priority filter; policy accept;
		iifname %s counter drop comment "the host itself is out of reach"
	}
	chain output {
		type filter hook output priority filter; policy accept;
		oifname %s counter drop comment "the host itself is out of reach"
	}
}
`, n.bridgeTable(), ours, ours)
}
