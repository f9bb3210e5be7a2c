package relay

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// outage tells of a service that can't be reached once, and once more when it is: members
// dial again all the time meanwhile, each of them many connections.
type outage struct {
	log *slog.Logger

	mu    sync.Mutex
	since time.Time
	lost  int // connections since then; 0: the last one was joined
}

// failed notes a connection that could not be joined.
func (o *outage) failed(addr netip.Addr, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lost++; o.lost == 1 {
		o.since = time.Now()
		o.log.Warn("relay can't join members' connections to the service's, and tries with each that comes", "tunnelAddress", addr, "error", err)
	}
}

// over notes one that could be.
func (o *outage) over() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lost > 0 {
		o.log.Info("relay joins members' connections again", "after", time.Since(o.since).Round(time.Millisecond), "refused", o.lost)
		o.lost = 0
	}
}
