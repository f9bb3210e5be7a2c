package resolver

import (
	"errors"
	"net"
	"net/netip"
	"sync"
)

// The errors of a question that can't wait for the servers.
var (
	errBusy       = errors.New("too many questions wait for the servers")
	errClientBusy = errors.New("too many questions of this client wait for the servers")
)

// waiting bounds the questions that wait for servers: all together, and each client's, so
// that one which asks as much as it can leaves room for the others.
type waiting struct {
	all, each int

	mu    sync.Mutex
	count int
	by    map[netip.Addr]int
}

func newWaiting(all, each int) *waiting {
	return &waiting{all: all, each: min(each, all), by: map[netip.Addr]int{}}
}

// enter lets a question wait; leave must be called if it gives no error.
func (w *waiting) enter(client netip.Addr) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.count >= w.all:
		return errBusy
	case w.by[client] >= w.each:
		return errClientBusy
	}
	w.count++
	w.by[client]++
	return nil
}

func (w *waiting) leave(client netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count--
	if w.by[client]--; w.by[client] == 0 {
		delete(w.by, client)
	}
}

// len is how many wait now.
func (w *waiting) len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count
}

// clientOf is the address that a question comes from.
func clientOf(from net.Addr) netip.Addr {
	at, err := netip.ParseAddrPort(from.String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}
