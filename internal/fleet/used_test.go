package fleet

import (
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/store"
)

// A gateway that was idle for a part of its time before the service was restarted pauses
// once the rest of it is over.
func TestAutoPauseGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		crash         bool // the last process had no time to store anything at its end
		before, after time.Duration
		wokenBetween  bool
		want          core.GatewayState
	}{
		{"not due yet", false, 20 * time.Minute, 5 * time.Minute, false, core.GatewayRunning},
		{"due", false, 20 * time.Minute, 11 * time.Minute, false, core.GatewayPaused},
		{"due, after a crash", true, 20 * time.Minute, 11 * time.Minute, false, core.GatewayPaused},
		{"due while the service was away", false, time.Minute, 40 * time.Minute, false, core.GatewayPaused},
		{"paused and woken since it was used", false, 29 * time.Minute, 11 * time.Minute, true, core.GatewayRunning},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.host("h", nil)
			r.spec(func(g *core.Gateway) { g.AutoPause = core.Duration(30 * time.Minute) })
			g := r.acquire()
			g.Release()
			r.fleet.saveUsed(true)
			r.ahead.Add(int64(c.before))
			if c.wokenBetween {
				r.pause("a test asked")
				r.wake("a test asked")
				r.fleet.save()
			}
			if c.crash {
				r.fleet.save()
				r.fleet.mu.Lock()
				r.fleet.lives[corpBI.UID].awake = false // so that nothing of it is stored at the end
				r.fleet.used = map[string]time.Time{}
				r.fleet.mu.Unlock()
			}
			r.close()
			r.ahead.Add(int64(c.after))
			r.open()
			r.host("h", nil)
			if c.want == core.GatewayPaused {
				r.eventually("paused", func() bool { return r.state() == core.GatewayPaused })
				if why := r.reasonOf(core.TransitionOfGateway, "Draining -torn down-> Paused"); why != "no query for 30m0s" {
					t.Errorf("because of %q", why)
				}
				return
			}
			r.fleet.steer()
			if s := r.state(); s != core.GatewayRunning && s != core.GatewayWaking {
				t.Errorf("it is %s", s)
			}
		})
	}
}

// A query in flight counts as use: what is stored follows the clock, some seconds apart.
func TestUseIsStoredWhileQueriesRun(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host("h", nil)
	r.spec(func(g *core.Gateway) { g.AutoPause = core.Duration(30 * time.Minute) })
	g := r.acquire()
	defer g.Release()
	stored := func() (text string) {
		_ = r.store.Read(t.Context(), func(tx store.Tx) (err error) { // NotFound: nothing yet
			text, err = tx.Setting(lastUsed)
			return err
		})
		return text
	}
	r.eventually("something is stored", func() bool { return stored() != "" })
	first := stored()
	r.ahead.Add(int64(time.Hour))
	r.eventually("the use goes on", func() bool { return stored() != first })
}
