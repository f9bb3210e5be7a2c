package ingress

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"
)

func from(text string) net.Addr {
	return &net.TCPAddr{IP: net.ParseIP(text), Port: 40000}
}

// TestSlotsOfOneSource: whoever begins handshakes and does not end them leaves the slots
// of others alone.
func TestSlotsOfOneSource(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name   string
		source string
		slots  int
	}{
		{"a member, by its tunnel address", "169.254.0.7", 2},
		{"a host", "192.0.2.1", 5},
		{"a host, by IPv6", "2001:db8::1", 5},
		{"an IPv4 address mapped to IPv6", "::ffff:169.254.0.7", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSlots(10, 5, 2)
			var held []func()
			for n := range c.slots {
				release, err := s.take(t.Context(), from(c.source))
				if err != nil {
					t.Fatalf("handshake %d: %v", n+1, err)
				}
				held = append(held, release)
			}
			if _, err := s.take(ended, from(c.source)); !errors.Is(err, context.Canceled) {
				t.Errorf("one more than the slots: %v, want that it waits", err)
			}
			other, err := s.take(t.Context(), from("169.254.0.8"))
			if err != nil {
				t.Fatalf("another source: %v", err)
			}
			other()
			held[0]()
			if again, err := s.take(t.Context(), from(c.source)); err != nil {
				t.Errorf("once one has ended: %v", err)
			} else {
				again()
			}
			for _, release := range held[1:] {
				release()
			}
			if len(s.of) != 0 || len(s.all) != 0 {
				t.Errorf("%d sources and %d slots are left", len(s.of), len(s.all))
			}
		})
	}
}

// TestSlotsBoundWhoWaits: a source has a bounded number of connections that wait, too.
func TestSlotsBoundWhoWaits(t *testing.T) {
	t.Parallel()
	s := newSlots(10, 5, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, err := s.take(ctx, from("169.254.0.7")); err != nil {
		t.Fatal(err)
	}
	waits := make(chan error, waitingPerSlot)
	for range waitingPerSlot {
		go func() {
			_, err := s.take(ctx, from("169.254.0.7"))
			waits <- err
		}()
	}
	for known, deadline := 0, time.Now().Add(30*time.Second); known < 1+waitingPerSlot; time.Sleep(time.Millisecond) {
		select {
		case err := <-waits:
			t.Fatalf("one of the %d that may wait does not: %v", waitingPerSlot, err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are known, want %d", known, 1+waitingPerSlot)
		}
		s.mu.Lock()
		known = s.of[addressOf(from("169.254.0.7"))].conns
		s.mu.Unlock()
	}
	ended, end := context.WithCancel(ctx)
	end() // whoever would wait gives up at once
	if _, err := s.take(ended, from("169.254.0.7")); !errors.Is(err, errCrowd) {
		t.Errorf("one more than may wait: %v, want %q", err, errCrowd)
	}
	cancel()
	for range waitingPerSlot {
		if err := <-waits; !errors.Is(err, context.Canceled) {
			t.Errorf("one that waits: %v, want Canceled", err)
		}
	}
}
