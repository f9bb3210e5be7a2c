package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// operationalWait bounds the wait for two ends of a veth to come up.
const operationalWait = 3 * time.Second

// end is one end of a veth.
type end struct {
	at    *space
	name  string
	mac   net.HardwareAddr
	alias string // what it is for, kept by the kernel for Inventory
}

// pair is a veth.
type pair struct{ a, b end }

// ensurePairs makes veths exist, up and operational, and returns their ends, two for
// each. An end is born where it belongs: moving one between namespaces costs 20 ms. A
// pair that fits is kept.
func ensurePairs(ctx context.Context, pairs ...pair) ([]netlink.Link, error) {
	var ends []end
	for _, p := range pairs {
		if err := ensurePair(p.a, p.b); err != nil {
			return nil, fmt.Errorf("veth %s–%s: %w", p.a.name, p.b.name, err)
		}
		ends = append(ends, p.a, p.b)
	}
	return raiseAll(ctx, ends)
}

func ensurePair(a, b end) error {
	err := addPair(a, b)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	kept, err := keepPair(a, b)
	if err != nil || kept {
		return err
	}
	return addPair(a, b)
}

func addPair(a, b end) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.Alias = a.name, a.mac, a.alias
	attrs.Flags = net.FlagUp
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerHardwareAddr = b.name, b.mac
	v.PeerNamespace = netlink.NsFd(b.at.file.Fd())
	return a.at.nl.LinkAdd(v)
}

// keepPair says whether both ends are each other's and as described; otherwise it
// removes what stands in the way.
func keepPair(a, b end) (bool, error) {
	la, errA := a.at.nl.LinkByName(a.name)
	lb, errB := b.at.nl.LinkByName(b.name)
	if errA == nil && errB == nil && fits(a, la, lb) && fits(b, lb, la) {
		return true, nil
	}
	if errA == nil {
		errA = a.at.nl.LinkDel(la)
	}
	if errB == nil {
		errB = b.at.nl.LinkDel(lb)
	}
	for _, err := range []error{errA, errB} {
		if err != nil && !gone(err) {
			return false, fmt.Errorf("removing what is in its place: %w", err)
		}
	}
	return false, nil
}

func fits(e end, l, peer netlink.Link) bool {
	at := l.Attrs()
	return l.Type() == "veth" && at.ParentIndex == peer.Attrs().Index && bytes.Equal(at.HardwareAddr, e.mac)
}

// raiseAll brings ends up and waits until all carry packets. An address that is used
// before that loses its first packet now and then, which costs a second.
func raiseAll(ctx context.Context, ends []end) ([]netlink.Link, error) {
	deadline := time.Now().Add(operationalWait)
	seen := make([]netlink.Link, len(ends))
	for try := 0; ; try++ {
		waiting := ""
		for i, e := range ends {
			var err error
			if seen[i], err = raise(e, seen[i]); err != nil {
				return nil, fmt.Errorf("interface %s: %w", e.name, err)
			}
			if !operational(seen[i]) {
				waiting = e.name
			}
		}
		if waiting == "" {
			return seen, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("interface %s is not operational within %s", waiting, operationalWait)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		nap(try)
	}
}

// nap sleeps in the kernel at first: the runtime's own timers round up to 1 ms, which
// is long beside the tenths that an interface takes.
func nap(try int) {
	if try < 20 {
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 50_000}, nil)
		return
	}
	time.Sleep(2 * time.Millisecond)
}

// raise reads an end, unless it was seen operational, and brings it up if it is down.
func raise(e end, seen netlink.Link) (netlink.Link, error) {
	if seen != nil && operational(seen) {
		return seen, nil
	}
	l, err := e.at.nl.LinkByName(e.name)
	if err != nil {
		return nil, err
	}
	if err := e.widen(l); err != nil {
		return nil, err
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		return l, e.at.nl.LinkSetUp(l)
	}
	return l, nil
}

// widen lets an end send segments as large as a veth carries, not 64 KiB: fewer and
// larger ones are what makes a stream within this machine faster. A member's eth0 keeps
// 64 KiB: what it sends may leave by a device that carries no more, before which the
// kernel would cut each larger one into single packets. Kernels before 6.3 don't know it.
func (e end) widen(l netlink.Link) error {
	at := l.Attrs()
	if e.name == ethName || at.GSOIPv4MaxSize == 0 || at.GSOIPv4MaxSize >= at.TSOMaxSize {
		return nil
	}
	return e.at.nl.LinkSetGSOIPv4MaxSize(l, int(at.TSOMaxSize))
}

func operational(l netlink.Link) bool { return l.Attrs().OperState == netlink.OperUp }

// removeLink deletes an interface by name; one that is not there is fine.
func (s *space) removeLink(name string) error {
	l, err := s.nl.LinkByName(name)
	if err == nil {
		err = s.nl.LinkDel(l)
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("removing interface %s: %w", name, err)
	}
	return nil
}

// links reads the namespace's interfaces.
func (s *space) links() (links, error) {
	list, err := retryDump(s.nl.LinkList)
	return newLinks(list...), err
}

// dropLinks deletes the interfaces that keep refuses, and returns the others.
func (s *space) dropLinks(keep func(name string) bool) (links, error) {
	l, err := s.links()
	if err != nil {
		return l, err
	}
	for name, index := range l.index {
		if keep(name) {
			continue
		}
		if err := s.removeLink(name); err != nil {
			return l, err
		}
		delete(l.index, name)
		delete(l.name, index)
	}
	return l, nil
}
