package linux

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// uplinkRecord is what was made or taken for one uplink. It is on disk before the machine
// is touched, so that a crash at any point leaves enough to give everything back.
type uplinkRecord struct {
	VNetUID string       `json:"vnetUid"`
	VNet    string       `json:"vnet"`
	Uplink  string       `json:"uplink"`
	Source  string       `json:"source"` // "device eth1"
	Link    string       `json:"link"`   // its name in V
	Network netip.Prefix `json:"network,omitzero"`
	// Lent is how the host's device was; nil if the uplink's is one that was made.
	Lent *lentDevice `json:"lent,omitempty"`
}

func (r uplinkRecord) is(o uplinkRecord) bool { return r.VNetUID == o.VNetUID && r.Uplink == o.Uplink }

// lentDevice is a device of the host as it was.
type lentDevice struct {
	Name   string      `json:"name"`
	MAC    string      `json:"mac,omitempty"`
	MTU    int         `json:"mtu"`
	Alias  string      `json:"alias,omitempty"`
	Up     bool        `json:"up"`
	Addrs  []lentAddr  `json:"addrs,omitempty"`
	Routes []lentRoute `json:"routes,omitempty"`
	// Conf is its own sysctl values, by family and name: "ipv4/forwarding".
	Conf map[string]string `json:"conf,omitempty"`
}

// lentAddr and lentRoute are netlink's own, as plain values.
type lentAddr struct {
	Net, Peer        string
	Broadcast        net.IP
	Label            string
	Flags, Scope     int
	Preferred, Valid int
}

type lentRoute struct {
	Dst                            string // "" is the default route
	Gw, Src                        net.IP
	Table, Protocol, Scope         int
	Type, Tos, Priority, MTU, Flag int
	Family                         int
}

// uplinkRecords is the file of them.
type uplinkRecords struct {
	file string
	mu   *sync.Mutex // virtual networks are made at the same time
}

func (n *Network) uplinkRecords() uplinkRecords {
	return uplinkRecords{filepath.Join(n.opts.StateDir, "uplinks-"+n.names.instance+".json"), &n.uplinkFile}
}

func (u uplinkRecords) load() ([]uplinkRecord, error) {
	b, err := os.ReadFile(u.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []uplinkRecord
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", u.file, err)
	}
	return out, nil
}

// put adds a record, or replaces that of the same uplink.
func (u uplinkRecords) put(r uplinkRecord) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	list, err := u.load()
	if err != nil {
		return err
	}
	return u.save(append(slices.DeleteFunc(list, r.is), r))
}

func (u uplinkRecords) drop(r uplinkRecord) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	list, err := u.load()
	if err != nil {
		return err
	}
	return u.save(slices.DeleteFunc(list, r.is))
}

func (u uplinkRecords) save(list []uplinkRecord) error {
	if len(list) == 0 {
		err := os.Remove(u.file)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(u.file), 0o700); err != nil {
		return err
	}
	return replaceFile(u.file, b)
}

// holdsLent says that a namespace holds a device of the host, which would end with it.
func (n *Network) holdsLent(space string) bool {
	list, err := n.uplinkRecords().load()
	return err != nil || slices.ContainsFunc(list, func(r uplinkRecord) bool {
		return r.Lent != nil && n.names.vnet(r.VNetUID) == space
	})
}

// lend reads how a device of the host is.
func (s *space) lend(l netlink.Link) (*lentDevice, error) {
	at := l.Attrs()
	d := &lentDevice{Name: at.Name, MAC: at.HardwareAddr.String(), MTU: at.MTU, Alias: at.Alias, Up: at.Flags&net.FlagUp != 0}
	if err := s.do(func() error { d.Conf = readConf(at.Name); return nil }); err != nil {
		return nil, err
	}
	addrs, err := retryDump(func() ([]netlink.Addr, error) { return s.nl.AddrList(l, unix.AF_UNSPEC) })
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if a.IP.To4() == nil && (a.IP.IsLinkLocalUnicast() || a.Flags&unix.IFA_F_TEMPORARY != 0) {
			continue // the kernel makes it again
		}
		d.Addrs = append(d.Addrs, lentAddr{
			Net: netText(a.IPNet), Peer: netText(a.Peer), Broadcast: a.Broadcast, Label: a.Label,
			Flags: a.Flags &^ (unix.IFA_F_TENTATIVE | unix.IFA_F_SECONDARY), Scope: a.Scope, Preferred: a.PreferedLft, Valid: a.ValidLft,
		})
	}
	filter := &netlink.Route{LinkIndex: at.Index, Table: unix.RT_TABLE_UNSPEC}
	routes, err := retryDump(func() ([]netlink.Route, error) {
		return s.nl.RouteListFiltered(unix.AF_UNSPEC, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if r.Protocol == unix.RTPROT_KERNEL || r.Protocol == unix.RTPROT_RA || r.Type != unix.RTN_UNICAST || r.Flags&unix.RTM_F_CLONED != 0 {
			continue
		}
		d.Routes = append(d.Routes, lentRoute{
			Dst: netText(r.Dst), Gw: r.Gw, Src: r.Src, Table: r.Table, Protocol: int(r.Protocol), Scope: int(r.Scope),
			Type: r.Type, Tos: r.Tos, Priority: r.Priority, MTU: r.MTU, Flag: r.Flags & int(netlink.FLAG_ONLINK), Family: r.Family,
		})
	}
	return d, nil
}

// restore makes a device of the host as it was lent. It stands on nothing but the
// record, and may be repeated.
func (s *space) restore(l netlink.Link, d *lentDevice) error {
	if l.Attrs().Name != d.Name {
		if err := errors.Join(s.nl.LinkSetDown(l), s.nl.LinkSetName(l, d.Name)); err != nil {
			return fmt.Errorf("giving it its name %s: %w", d.Name, err)
		}
	}
	failed := []error{s.nl.LinkSetAlias(l, d.Alias), s.do(func() error { return writeConf(d.Name, d.Conf) })}
	if l.Attrs().MTU != d.MTU {
		failed = append(failed, s.nl.LinkSetMTU(l, d.MTU))
	}
	if d.Up {
		failed = append(failed, s.nl.LinkSetUp(l))
	} else {
		failed = append(failed, s.nl.LinkSetDown(l))
	}
	for _, a := range d.Addrs {
		if err := s.nl.AddrReplace(l, a.kernel()); err != nil {
			failed = append(failed, fmt.Errorf("its address %s: %w", a.Net, err))
		}
	}
	if !d.Up {
		return errors.Join(failed...) // a device that is down has no routes
	}
	return errors.Join(append(failed, s.restoreRoutes(l, d))...)
}

// readConf reads a device's own sysctl values, which it leaves behind when it moves. What
// can't be read has none.
func readConf(device string) map[string]string {
	out := map[string]string{}
	for _, family := range []string{"ipv4", "ipv6"} {
		entries, _ := os.ReadDir(filepath.Join(sysctlDir, family, "conf", device))
		for _, e := range entries {
			if v, err := readSysctl(filepath.Join(family, "conf", device, e.Name())); err == nil {
				out[family+"/"+e.Name()] = v
			}
		}
	}
	if out["ipv6/addr_gen_mode"] != "2" {
		delete(out, "ipv6/stable_secret") // the kernel's own, new at each start
	}
	return out
}

// writeConf writes those that are not as they were.
func writeConf(device string, conf map[string]string) error {
	now := readConf(device)
	var failed []error
	for _, key := range sortedKeys(conf) {
		if have, ok := now[key]; !ok || have == conf[key] {
			continue
		}
		family, name, _ := strings.Cut(key, "/")
		failed = append(failed, writeAll([]sysctl{{key: filepath.Join(family, "conf", device, name), value: conf[key], optional: true}}))
	}
	return errors.Join(failed...)
}

// restoreRoutes adds those first that others' gateways are reached by.
func (s *space) restoreRoutes(l netlink.Link, d *lentDevice) error {
	var failed []error
	for _, direct := range []bool{true, false} {
		for _, r := range d.Routes {
			if (len(r.Gw) == 0) != direct {
				continue
			}
			if err := s.nl.RouteReplace(r.kernel(l.Attrs().Index)); err != nil {
				failed = append(failed, fmt.Errorf("its route to %q: %w", r.Dst, err))
			}
		}
	}
	return errors.Join(failed...)
}

func (a lentAddr) kernel() *netlink.Addr {
	broadcast := a.Broadcast
	if broadcast == nil {
		broadcast = net.IPv4zero // to the library: none, not one that it makes up
	}
	return &netlink.Addr{
		IPNet: netOf(a.Net), Peer: netOf(a.Peer), Broadcast: broadcast, Label: a.Label,
		Flags: a.Flags, Scope: a.Scope, PreferedLft: a.Preferred, ValidLft: a.Valid,
	}
}

func (r lentRoute) kernel(index int) *netlink.Route {
	return &netlink.Route{
		LinkIndex: index, Dst: netOf(r.Dst), Gw: r.Gw, Src: r.Src, Table: r.Table, Protocol: netlink.RouteProtocol(r.Protocol),
		Scope: netlink.Scope(r.Scope), Type: r.Type, Tos: r.Tos, Priority: r.Priority, MTU: r.MTU, Flags: r.Flag, Family: r.Family,
	}
}

func netText(n *net.IPNet) string {
	if n == nil {
		return ""
	}
	return n.String()
}

// netOf reads what netText wrote, the host bits as they were.
func netOf(text string) *net.IPNet {
	ip, n, err := net.ParseCIDR(text)
	if err != nil {
		return nil
	}
	if v4 := ip.To4(); v4 != nil {
		ip = v4
	}
	return &net.IPNet{IP: ip, Mask: n.Mask}
}
