package tunnel

import (
	"context"
	"math/rand/v2"
	"time"
)

// steady is how long a connection must have lasted for the next dial to come at once.
const steady = time.Second

// backoff spaces dials: each wait is up to twice the one before, with jitter.
type backoff struct {
	next, most time.Duration
}

// succeeded starts over, if what began at began has lasted.
func (b *backoff) succeeded(began time.Time) {
	if time.Since(began) >= steady {
		b.next = firstRedial
	}
}

// wait sleeps until the next dial is due, hurry is closed, or ctx ends, which it returns.
func (b *backoff) wait(ctx context.Context, hurry <-chan struct{}) error {
	t := time.NewTimer(b.next/2 + rand.N(b.next/2+1))
	defer t.Stop()
	b.next = min(2*b.next, b.most)
	select {
	case <-t.C:
	case <-hurry:
		b.next = firstRedial
	case <-ctx.Done():
	}
	return ctx.Err()
}
