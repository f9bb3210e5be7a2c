package linux

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// BenchmarkNATMeter looks at a NAT gateway with many flows: the counters twice, and every
// flow once. It prints the CPU, kernel's share included, that a flow costs in one look.
func BenchmarkNATMeter(b *testing.B) {
	for _, flows := range []int{0, 100, 4000} {
		b.Run(fmt.Sprint(flows, " flows"), func(b *testing.B) {
			l := newLab(b)
			g := corp("u1")
			m := member(g, 1, 1)
			n := l.up()
			s, err := n.Set(l.ctx(), hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{m}})
			if err != nil {
				b.Fatal(err)
			}
			in(b, portOf(b, s, m), func() error { return manyFlows(flows) })
			meter := n.vnets["u1"].nats["u1-egress"].meter
			before := cpuUsed(b)
			for b.Loop() {
				r, err := meter.look()
				if err != nil || int(r.flows) < flows {
					b.Fatalf("%d flows, %v", r.flows, err)
				}
			}
			used := cpuUsed(b) - before
			b.ReportMetric(float64(used.Microseconds())/float64(b.N)/1000, "cpu-ms/look")
		})
	}
}

// manyFlows sends one datagram to each of many ports.
func manyFlows(n int) error {
	c, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return err
	}
	defer c.Close()
	to := netip.MustParseAddr(labWorldAddr)
	for i := range n {
		if _, err := c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(to, uint16(1+i))); err != nil {
			return err
		}
	}
	return nil
}

func cpuUsed(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
