package tunnel_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/tunnel/tunneltest"
)

// TestSilenceIsToldLongBeforeTheEnd: one that stops for a moment is suspect, and heard again.
func TestSilenceIsToldLongBeforeTheEnd(t *testing.T) {
	t.Parallel()
	hap := newHappenings()
	o := hap.options()
	o.HeartbeatTimeout = time.Minute
	silent := make(chan bool, 32)
	o.OnSuspect = func(member string, generation int64, now bool) {
		if member == tunneltest.Member && generation == tunneltest.Generation {
			silent <- now
		}
	}
	var d *deaf
	h := tunneltest.StartWith(t, tunneltest.Options{
		Hub: o, Handler: http.HandlerFunc(echo),
		Via: func(service string) string {
			var addr string
			d, addr = newDeaf(t, service)
			return addr
		},
	})
	soon(t, hap.ups, "up")
	for range 2 {
		d.set(true)
		for !soon(t, silent, "suspect") { // on a busy machine it may have been for a moment before
		}
		if !h.Hub.Connected(tunneltest.Member, tunneltest.Generation) {
			t.Fatal("the silent member counts as gone")
		}
		d.set(false)
		for soon(t, silent, "heard again") {
		}
	}
	select {
	case reason := <-hap.downs:
		t.Errorf("down: %v", reason)
	default:
	}
}

// TestALostControlConnectionIsSuspect until another has come.
func TestALostControlConnectionIsSuspect(t *testing.T) {
	t.Parallel()
	hap := newHappenings()
	o := hap.options()
	o.Grace, o.HeartbeatEvery, o.HeartbeatTimeout = time.Minute, 20*time.Second, time.Minute
	silent := make(chan bool, 32)
	o.OnSuspect = func(_ string, _ int64, now bool) { silent <- now }
	h := tunneltest.StartWith(t, tunneltest.Options{Hub: o, Handler: http.HandlerFunc(echo)})
	soon(t, hap.ups, "up")
	h.Relay.Kill()
	if !soon(t, silent, "suspect") {
		t.Error("heard, with no connection to be heard on")
	}
	h.Relay.Start()
	if soon(t, silent, "heard again") {
		t.Error("suspect twice")
	}
}
