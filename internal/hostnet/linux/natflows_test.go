package linux

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// TestOneMemberDoesNotFillTheNATGateway: a member with more flows than its share begins no
// more, its own go on, and its neighbour's begin.
func TestOneMemberDoesNotFillTheNATGateway(t *testing.T) {
	t.Parallel()
	const share, sent = 50, 400
	l := newLab(t)
	g := corp("u1")
	greedy, modest := member(g, 1, 1), member(g, 2, 2)
	n := l.up(func(o *Options) { o.MaxNATFlowsPerMember = share })
	s := l.set(n, hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{greedy, modest}})
	serveIn(t, l.world, labWorldAddr+":80", "world")
	held, err := dialIn(t, portOf(t, s, greedy), labWorldAddr+":80", 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	in(t, portOf(t, s, greedy), func() error { return manyFlows(sent) })
	at := n.vnets["u1"].nats["u1-egress"].at.path
	flows := func(of netip.Addr) (count int) {
		in(t, at, func() error {
			list, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
			for _, f := range list {
				if a, ok := netip.AddrFromSlice(f.Forward.SrcIP.To4()); ok && a == of {
					count++
				}
			}
			return err
		})
		return count
	}
	if got := flows(greedy.Address); got != share {
		t.Errorf("a member that began %d flows has %d, not %d", sent+1, got, share)
	}
	if dropped := counter(t, at, "more flows than a member may have here"); dropped != sent+1-share {
		t.Errorf("%d flows were dropped, not %d", dropped, sent+1-share)
	}
	wantGreeting(t, portOf(t, s, modest), labWorldAddr+":80", "world "+labHostAddr)
	if got, err := line(held); err != nil || got == "" {
		t.Errorf("the connection from before: %q, %v", got, err)
	}
	wantSilence(t, portOf(t, s, greedy), labWorldAddr+":80")
}
