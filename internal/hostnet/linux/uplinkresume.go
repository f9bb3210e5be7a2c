package linux

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/sluice-gateway/sluice/internal/dhcp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// uplinkKey names an uplink among those of all virtual networks.
type uplinkKey struct{ vnetUID, name string }

func (r uplinkRecord) key() uplinkKey { return uplinkKey{r.VNetUID, r.Uplink} }

// resumed is what an earlier process leased through an uplink. It is extended while nobody
// says what this host runs: members run on meanwhile, with these addresses.
type resumed struct {
	pool *dhcp.Pool
	at   *space
	link netlink.Link
}

// ResumeLeases goes on extending the leases that are written down, until a Set. Where it
// can't, the uplink's goal takes them over as they are. Up does it, too: this is for one
// who has to wait before Up.
func (n *Network) ResumeLeases() {
	list, err := n.uplinkRecords().load()
	for _, r := range list {
		if failed := n.resumeUplink(r); failed != nil {
			err = errors.Join(err, fmt.Errorf("uplink %s of VirtualNetwork %s: %w", r.Uplink, r.VNet, failed))
		}
	}
	n.warn("extending the DHCP leases of an earlier process", err)
}

func (n *Network) resumeUplink(r uplinkRecord) error {
	n.resuming.Lock()
	_, done := n.resumed[r.key()]
	n.resuming.Unlock()
	if done {
		return nil
	}
	records := n.dhcpRecords()
	leases, err := records.load(r.VNetUID, r.Uplink)
	if err != nil || len(leases) == 0 {
		return err
	}
	at, err := openSpace(n.names.vnet(r.VNetUID))
	if isNotExist(err) {
		return nil // the machine was started anew, and nothing runs
	}
	if err != nil {
		return err
	}
	link, err := at.nl.LinkByName(r.Link)
	if err != nil {
		at.close()
		return fmt.Errorf("its device %s: %w", r.Link, err)
	}
	u := &resumed{at: at, link: link}
	nothing := func(string, netip.Addr) error { return errors.New("nobody has asked for an address yet") }
	u.pool = dhcp.NewPool(dhcp.Options{
		Exchange: dhcpClient(at, link, r.Network), Leases: leases, Fits: nothing, Hint: func(string, bool) netip.Addr { return netip.Addr{} }, Logger: n.log,
		Save:    func(l []dhcp.Lease) error { return records.save(r.VNetUID, r.Uplink, l) },
		Changed: func() { n.warn("withdrawing an address whose DHCP lease is lost", u.withdraw(leases)) },
	})
	n.resuming.Lock()
	n.resumed[r.key()] = u
	n.resuming.Unlock()
	u.pool.Resume()
	n.log.Info("the DHCP leases of an earlier process are extended", "vnet", r.VNet, "uplink", r.Uplink, "leases", len(leases))
	return nil
}

// endResumed leaves an uplink's leases to somebody else, as they are written down, and
// returns which clients have lost theirs, and why.
func (n *Network) endResumed(k uplinkKey) map[string]string {
	n.resuming.Lock()
	u := n.resumed[k]
	delete(n.resumed, k)
	n.resuming.Unlock()
	if u == nil {
		return nil
	}
	u.pool.Close()
	u.at.close()
	lost := map[string]string{}
	for id, s := range u.pool.States() {
		if s.Lost != "" {
			lost[id] = s.Lost
		}
	}
	return lost
}

// withdraw takes addresses away whose leases are lost: another may have them. A member's
// interface goes down, so that it sends nothing as that address either.
func (u *resumed) withdraw(leases []dhcp.Lease) error {
	states, index := u.pool.States(), u.link.Attrs().Index
	var failed []error
	for _, l := range leases {
		if states[l.Client].Lost == "" {
			continue
		}
		ip := netlink.NewIPNet(l.Address.AsSlice())
		for _, err := range []error{
			u.at.nl.NeighDel(proxy(index, l.Address)),
			u.at.nl.AddrDel(u.link, &netlink.Addr{IPNet: ip}),
			u.at.cutOff(ip),
		} {
			if err != nil && !gone(err) {
				failed = append(failed, fmt.Errorf("%s: %w", l.Address, err))
			}
		}
	}
	return errors.Join(failed...)
}

// cutOff takes the interface down that an address is behind.
func (s *space) cutOff(a *net.IPNet) error {
	routes, err := retryDump(func() ([]netlink.Route, error) {
		return s.nl.RouteListFiltered(unix.AF_INET, &netlink.Route{Dst: a, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	})
	for _, r := range routes {
		link, failed := s.nl.LinkByIndex(r.LinkIndex)
		if failed == nil {
			failed = s.nl.LinkSetDown(link)
		}
		err = errors.Join(err, failed)
	}
	return err
}

// hostAddresses lists the host's own.
func (n *Network) hostAddresses() ([]netip.Addr, error) {
	list, err := retryDump(func() ([]netlink.Addr, error) { return n.host.nl.AddrList(nil, unix.AF_INET) })
	var out []netip.Addr
	for _, a := range list {
		out = append(out, toAddr(a.IP))
	}
	return out, err
}
