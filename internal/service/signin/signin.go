// Package signin checks the bearer tokens that reach the front ends from outside, and
// bounds how often an address may fail.
//
// It owns the answer to a bad token, which is the same whatever was wrong with it,
// and the count of failures. It does not own the tokens. httpapi and flightsql call it.
package signin

import (
	"context"
	"crypto/sha256"
	"net/netip"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// Options of a Gate.
type Options struct {
	// Authenticate finds the principal of a token. Required.
	Authenticate func(ctx context.Context, token string) (core.Principal, error)
	// Burst is how many failures an address may have at once, and Refill how soon one
	// of them is forgotten. Default 20, 1s.
	Burst  int
	Refill time.Duration
	Now    func() time.Time // Default time.Now
}

// The bounds of a Gate's memory.
const (
	maxAddresses = 4096
	maxKnown     = 4096
)

// Gate lets tokens through. It is safe for concurrent use.
type Gate struct {
	opts Options

	mu sync.Mutex
	// failures of each address; the zero Addr counts for all that found no room.
	failures map[netip.Addr]*bucket
	forgot   time.Time // when drained buckets were last looked for: not at each failure
	// known holds the hashes of tokens that were good: their holders are not kept out
	// by whoever fails from the same address.
	known map[[sha256.Size]byte]struct{}
}

// bucket counts failures that drain with time.
type bucket struct {
	level float64
	at    time.Time
}

// New returns a Gate.
func New(opts Options) *Gate {
	if opts.Burst <= 0 {
		opts.Burst = 20
	}
	if opts.Refill <= 0 {
		opts.Refill = time.Second
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Gate{opts: opts, failures: map[netip.Addr]*bucket{}, known: map[[sha256.Size]byte]struct{}{}}
}

// Check returns the principal of a token that came from an address. Past the bound of
// failures, a token that was never good is not even looked up.
func (g *Gate) Check(ctx context.Context, remote, token string) (core.Principal, error) {
	addr := network(remote)
	sum := sha256.Sum256([]byte(token))
	if g.barred(addr, sum) {
		return core.Principal{}, errs.New(errs.Exhausted, "too many requests with bad tokens came from this address").
			WithStep(errs.StepAdmit).WithHint("wait some seconds, and check the token")
	}
	if token == "" {
		g.failed(addr, sum)
		return core.Principal{}, refused()
	}
	p, err := g.opts.Authenticate(ctx, token)
	switch {
	case err == nil:
		g.succeeded(sum)
		return p, nil
	case errs.ClassOf(err) == errs.Unauthenticated || errs.ClassOf(err) == errs.NotFound:
		g.failed(addr, sum)
		return core.Principal{}, refused()
	}
	return core.Principal{}, err
}

// refused is the one answer to every bad token.
func refused() error {
	return errs.New(errs.Unauthenticated, "the request carries no valid token").WithStep(errs.StepAdmit).
		WithHint("send the service's token as a bearer token, or with Basic as the password; the administrator's was shown at the first start")
}

// network is what failures are counted for: an IPv4 address, or an IPv6 /64.
func network(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is6() {
		p, _ := a.Prefix(64)
		return p.Addr()
	}
	return a
}

func (g *Gate) barred(addr netip.Addr, sum [sha256.Size]byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.known[sum]; ok {
		return false
	}
	b, ok := g.failures[g.counted(addr)]
	return ok && b.drain(g.opts) > float64(g.opts.Burst)-1
}

// counted is the address that failures of addr count for: itself, or, where there is
// no room for it, the one for all such.
func (g *Gate) counted(addr netip.Addr) netip.Addr {
	if _, ok := g.failures[addr]; !ok && len(g.failures) >= maxAddresses {
		return netip.Addr{}
	}
	return addr
}

func (g *Gate) succeeded(sum [sha256.Size]byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.known) < maxKnown {
		g.known[sum] = struct{}{}
	}
}

func (g *Gate) failed(addr netip.Addr, sum [sha256.Size]byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.known, sum)
	if len(g.failures) >= maxAddresses && g.opts.Now().Sub(g.forgot) >= g.opts.Refill {
		g.forget()
	}
	addr = g.counted(addr)
	b, ok := g.failures[addr]
	if !ok {
		b = &bucket{at: g.opts.Now()}
		g.failures[addr] = b
	}
	b.level = b.drain(g.opts) + 1
}

// forget drops addresses whose failures have drained.
func (g *Gate) forget() {
	g.forgot = g.opts.Now()
	for addr, b := range g.failures {
		if b.drain(g.opts) == 0 {
			delete(g.failures, addr)
		}
	}
}

// drain takes off what time has made good and returns the level.
func (b *bucket) drain(opts Options) float64 {
	now := opts.Now()
	b.level = max(0, b.level-float64(now.Sub(b.at))/float64(opts.Refill))
	b.at = now
	return b.level
}
