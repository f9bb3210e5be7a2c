package linux

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"golang.org/x/sys/unix"
)

// BenchmarkNewFlowsLogged opens TCP connections from member to member, in turns through a
// network without flow logs and one with the logs of both subnets' NSGs on, at the
// shortest interval there is. The kernel forgets connections soon, so the log gets their
// ends as well. One operation is 5,000 connections in each.
//
// on/off is the rate of connections with the log against without, cpu the same for the
// CPU time of the process, the log's own work and the kernel's for it among that.
func BenchmarkNewFlowsLogged(b *testing.B) {
	l := newLab(b)
	n := l.up()
	var cfg hostnet.Config
	for i, on := range []bool{false, true} {
		g := open2(corp([]string{"u1", "u2"}[i]))
		for j := range g.NSGs {
			g.NSGs[j].FlowLog = core.FlowLog{Enabled: on, Interval: core.Duration(10 * time.Second)}
		}
		one, two := member(g, 1, 2*i+1), member(g, 2, 2*i+2)
		two.Subnet, two.Address = "data", nth(g.Subnets[1].Prefix, 9)
		cfg.VNets, cfg.Ports = append(cfg.VNets, g), append(cfg.Ports, one, two)
	}
	s := l.set(n, cfg)
	var burst [2]func()
	for i, g := range cfg.VNets {
		forgetSoon(b, n, g.UID)
		one, two := cfg.Ports[2*i], cfg.Ports[2*i+1]
		burst[i] = connector(b, portOf(b, s, one), portOf(b, s, two), netip.AddrPortFrom(two.Address, 5432))
	}
	var rates, cpu []float64
	for turn := 0; b.Loop(); turn++ {
		var took, used [2]time.Duration
		for k := range burst {
			i := (k + turn) % 2
			began, cpuBegan := time.Now(), cpuTime(b)
			burst[i]()
			took[i] = time.Since(began)
			time.Sleep(300 * time.Millisecond) // what waits for the log to read it is its cost, too
			used[i] = cpuTime(b) - cpuBegan
		}
		rates, cpu = append(rates, float64(took[0])/float64(took[1])), append(cpu, float64(used[0])/float64(used[1]))
	}
	slices.Sort(rates)
	slices.Sort(cpu)
	b.ReportMetric(rates[len(rates)/2], "on/off")
	b.ReportMetric(cpu[len(cpu)/2], "cpu")
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// connector makes a server and gives what connects to it and resets 5,000 times.
func connector(b *testing.B, from, to string, at netip.AddrPort) func() {
	var server *net.TCPListener
	in(b, to, func() (err error) {
		server, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
		return err
	})
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := server.AcceptTCP()
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, c) // until the client's reset
			c.Close()
		}
	})
	b.Cleanup(func() { server.Close(); accepting.Wait() })
	return func() {
		in(b, from, func() error {
			for range 5000 {
				c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(at))
				if err != nil {
					return err
				}
				c.SetLinger(0)
				c.Close()
			}
			return nil
		})
	}
}
