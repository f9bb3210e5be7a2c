package linux

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inventoryUplinks lists what is in V because of an uplink. The veths of those on a bridge
// are among the namespace's own.
func (n *Network) inventoryUplinks() ([]hostnet.Item, error) {
	list, err := n.uplinkRecords().load()
	if err != nil {
		return nil, err
	}
	var items []hostnet.Item
	for _, r := range list {
		found, err := n.inventoryUplink(r)
		if err != nil {
			return nil, fmt.Errorf("looking at uplink %s of VirtualNetwork %s: %w", r.Uplink, r.VNet, err)
		}
		items = append(items, found...)
	}
	return items, nil
}

func (n *Network) inventoryUplink(r uplinkRecord) ([]hostnet.Item, error) {
	space := n.names.vnet(r.VNetUID)
	missing := hostnet.Item{Type: "uplink", Name: within(space, r.Link), Why: r.why() + "; its device is not there"}
	at, err := openSpace(space)
	if isNotExist(err) {
		return []hostnet.Item{missing}, nil
	}
	if err != nil {
		return nil, err
	}
	defer at.close()
	link, err := at.nl.LinkByName(r.Link)
	if gone(err) {
		return []hostnet.Item{missing}, nil
	}
	if err != nil {
		return nil, err
	}
	item := hostnet.Item{Type: "uplink", Name: within(space, r.Link), Why: r.why()}
	if r.Lent != nil {
		item.Why += ", lent by the host, which gets it back"
	}
	items, err := n.inventoryLeases(space, r)
	if err != nil {
		return nil, err
	}
	items = append(items, item)
	index := link.Attrs().Index
	proxies, err := retryDump(func() ([]netlink.Neigh, error) { return at.nl.NeighProxyList(index, unix.AF_INET) })
	for _, p := range proxies {
		if p.LinkIndex == index {
			items = append(items, hostnet.Item{
				Type: "ARP answer", Name: within(space, r.Link+" "+p.IP.String()), Why: "a lease on the network of " + r.why(),
			})
		}
	}
	return items, err
}

// inventoryLeases lists what an uplink has leased by DHCP.
func (n *Network) inventoryLeases(space string, r uplinkRecord) (items []hostnet.Item, err error) {
	leases, err := n.dhcpRecords().load(r.VNetUID, r.Uplink)
	for _, l := range leases {
		whose := "itself"
		if k, ok := clientPort(l.Client); ok {
			whose = "member " + k.Member
		}
		items = append(items, hostnet.Item{
			Type: "DHCP lease", Name: within(space, r.Link+" "+l.Address.String()),
			Why: fmt.Sprintf("for %s, of %s, until %s; %s", whose, l.Server, l.Expires.UTC().Format(time.RFC3339), r.why()),
		})
	}
	return items, err
}

// cleanUplinks gives back every device, before the namespaces go that they are in.
func (n *Network) cleanUplinks(ctx context.Context) error {
	var failed []error
	for _, p := range n.returnUplinks(ctx, nil) {
		failed = append(failed, p.Err)
	}
	host, err := openHost(n.opts.HostNS)
	if err != nil {
		return errors.Join(append(failed, err)...)
	}
	defer host.close()
	return errors.Join(append(failed, n.guardBridges(ctx, host, uplinkRecord{}))...)
}
