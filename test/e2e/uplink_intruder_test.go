package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/nettest"
	"github.com/sluice-gateway/sluice/test/e2e/stack"
)

// TestAnIntruderOnAnUplink has the real host run another program in the place of a member
// with an address of a network that exists. What it sends to one machine there arrives;
// what it sends to everyone, to groups and as somebody else does not.
func TestAnIntruderOnAnUplink(t *testing.T) {
	t.Parallel()
	program := buildIntruder(t)
	for _, name := range []string{"a bridge", "a NIC"} {
		t.Run(name, func(t *testing.T) {
			busy.take(t)
			f := newFar(t, lanServer+"/24")
			_, uplink := standing[name](t, f)
			network := nettest.Watch(t, "the network", "/run/netns/"+f.ns, f.dev)
			s := stack.New(t)
			s.Up("--gateway-program", program)
			s.Apply(plant(uplink))
			r := (&corp{Stack: s, t: t}).intrude(t)
			if len(r.Uplink) < 14 {
				t.Fatalf("it tried %d things: %v", len(r.Uplink), r.Uplink)
			}
			eventually(t, 60*time.Second, "what may be sent arrives", func() bool { return network.Saw("intruder<control>") > 0 })
			for what, err := range r.Uplink {
				sent, is := strings.CutPrefix(what, "send ")
				switch {
				case is && sent != "<control>" && network.Saw("intruder"+sent) > 0:
					t.Errorf("the network got what it sent: %s", sent)
				case !is && err == "":
					t.Errorf("it could %s", what)
				}
			}
			if network.Saw("intruder<IPv6") > 0 {
				t.Error("the network got IPv6 of it")
			}
		})
	}
}
