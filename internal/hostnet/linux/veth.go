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

// ensurePair makes two ends exist, up and operational. Each end is born where it
// belongs: moving one between namespaces costs 20 ms. A pair that fits is kept.
func ensurePair(ctx context.Context, a, b end) (la, lb netlink.Link, err error) {
	err = addPair(a, b)
	if errors.Is(err, unix.EEXIST) {
		if la, lb, err = keepPair(a, b); err == nil && la == nil {
			err = addPair(a, b)
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("veth %s–%s: %w", a.name, b.name, err)
	}
	la, lb, err = raisePair(ctx, a, b)
	if err != nil {
		return nil, nil, fmt.Errorf("veth %s–%s: %w", a.name, b.name, err)
	}
	return la, lb, nil
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

// keepPair returns both ends if they are each other's and as described; otherwise it
// removes what stands in the way and returns nil.
func keepPair(a, b end) (netlink.Link, netlink.Link, error) {
	la, errA := a.at.nl.LinkByName(a.name)
	lb, errB := b.at.nl.LinkByName(b.name)
	if errA == nil && errB == nil && fits(a, la, lb) && fits(b, lb, la) {
		return la, lb, nil
	}
	if errA == nil {
		errA = a.at.nl.LinkDel(la)
	}
	if errB == nil {
		errB = b.at.nl.LinkDel(lb)
	}
	for _, err := range []error{errA, errB} {
		if err != nil && !gone(err) {
			return nil, nil, fmt.Errorf("removing what is in its place: %w", err)
		}
	}
	return nil, nil, nil
}

func fits(e end, l, peer netlink.Link) bool {
	at := l.Attrs()
	return l.Type() == "veth" && at.ParentIndex == peer.Attrs().Index && bytes.Equal(at.HardwareAddr, e.mac)
}

// raisePair brings both ends up and waits until both carry packets. An address that
// is used before that loses its first packet now and then, which costs a second.
func raisePair(ctx context.Context, a, b end) (la, lb netlink.Link, err error) {
	deadline := time.Now().Add(operationalWait)
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		if la, err = raise(a, la); err != nil {
			return nil, nil, err
		}
		if lb, err = raise(b, lb); err != nil {
			return nil, nil, err
		}
		if operational(la) && operational(lb) {
			return la, lb, nil
		}
		if time.Now().After(deadline) {
			return nil, nil, fmt.Errorf("not operational within %s", operationalWait)
		}
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-time.After(pause):
		}
	}
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
	if l.Attrs().Flags&net.FlagUp == 0 {
		return l, e.at.nl.LinkSetUp(l)
	}
	return l, nil
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
