package ingress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
)

// waitingPerSlot is how many connections of one source may wait for each of its slots.
const waitingPerSlot = 7

// errCrowd says that a source has more connections in their handshakes than it may.
var errCrowd = errors.New("one address has too many connections")

// slots bounds the handshakes under way: in all, and of one source. Whoever begins
// handshakes and does not end them waits for themselves only.
type slots struct {
	all       chan struct{}
	perSource int // of a host, or whoever else reaches the hosts address
	perMember int // of a member whose connection was handed over: its tunnel address

	mu sync.Mutex
	of map[netip.Addr]*source
}

// source is whoever dials from one address.
type source struct {
	slots chan struct{}
	conns int // that hold a slot or wait for one
}

func newSlots(all, perSource, perMember int) *slots {
	return &slots{all: make(chan struct{}, all), perSource: perSource, perMember: perMember, of: map[netip.Addr]*source{}}
}

// take waits for a slot of the source and for one of all; release gives both back.
func (s *slots) take(ctx context.Context, from net.Addr) (release func(), err error) {
	addr := addressOf(from)
	src, err := s.enter(addr)
	if err != nil {
		return nil, err
	}
	select {
	case src.slots <- struct{}{}:
	case <-ctx.Done():
		s.leave(addr, src)
		return nil, fmt.Errorf("handshakes of %s took all of its %d slots: %w", addr, cap(src.slots), ctx.Err())
	}
	select {
	case s.all <- struct{}{}:
	case <-ctx.Done():
		<-src.slots
		s.leave(addr, src)
		return nil, fmt.Errorf("handshakes took all %d slots: %w", cap(s.all), ctx.Err())
	}
	return func() {
		<-s.all
		<-src.slots
		s.leave(addr, src)
	}, nil
}

func (s *slots) enter(addr netip.Addr) (*source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	src := s.of[addr]
	if src == nil {
		n := s.perSource
		if addr.IsLinkLocalUnicast() {
			n = s.perMember
		}
		src = &source{slots: make(chan struct{}, n)}
		s.of[addr] = src
	}
	if most := cap(src.slots) * (1 + waitingPerSlot); src.conns >= most {
		return nil, fmt.Errorf("%w: %d are in their handshakes or wait for one", errCrowd, src.conns)
	}
	src.conns++
	return src, nil
}

func (s *slots) leave(addr netip.Addr, src *source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if src.conns--; src.conns == 0 {
		delete(s.of, addr)
	}
}

// addressOf returns the address without its port; what has none counts as one source.
func addressOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
