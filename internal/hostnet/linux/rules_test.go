package linux

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/policy"
)

// manyRules puts n rules before what the NSG of the subnet gateways has. They match
// nothing that the tests send; turn changes one of them.
func manyRules(g core.GoalVNet, n, turn int) core.GoalVNet {
	g = cloneVNet(g)
	rules := make([]core.SecurityRule, 0, n)
	for i := range n {
		r := core.SecurityRule{
			Name: fmt.Sprintf("rule-%d", i), Priority: 100 + i, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolTCP,
			Destination: []string{fmt.Sprintf("10.%d.%d.0/24", i%7+30, i%250)}, DestinationPorts: []string{fmt.Sprint(6000 + 7*i)},
		}
		switch {
		case i%50 == 7:
			r.DestinationPorts = nil
		case i%3 == 0:
			r.DestinationPorts = append(r.DestinationPorts, fmt.Sprintf("%d-%d", 20000+i*10, 20000+i*10+40))
		}
		if i == n/2 {
			r.Destination = []string{fmt.Sprintf("10.40.%d.0/24", turn%250)}
		}
		rules = append(rules, r)
	}
	rules = append(rules, core.SecurityRule{
		Name: "rest", Priority: 4000, Direction: core.Outbound, Access: core.Allow, Protocol: core.ProtocolAny,
	})
	g.NSGs[0].Rules, g.NSGs[1].Rules = rules, nil
	return g
}

// TestRunningFlowLosesNothing sends a datagram to and fro while rules are replaced, one
// rule at a time, many at once, and between the two forms. A lost one is not sent again.
func TestRunningFlowLosesNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := corp("u1")
	a, b := member(g, 1, 1), member(g, 2, 2)
	n := l.up()
	cfg := hostnet.Config{VNets: []core.GoalVNet{manyRules(g, 300, 0)}, Ports: []hostnet.Port{a, b}}
	s := l.set(n, cfg)
	address := netip.AddrPortFrom(b.Address, 9000)
	server := listenUDPIn(t, portOf(t, s, b), address)
	client := dialUDPIn(t, portOf(t, s, a), address)
	var answering sync.WaitGroup
	answering.Go(func() {
		buf := make([]byte, 64)
		for {
			k, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort(buf[:k], from)
		}
	})
	defer answering.Wait()
	defer server.Close()

	changed := make(chan struct{})
	var changing sync.WaitGroup
	defer changing.Wait()
	changing.Go(func() {
		defer close(changed)
		for i := range 24 {
			size := 300
			if i%6 == 5 {
				size = 20 // back to one chain
			}
			next := cfg
			next.VNets = []core.GoalVNet{manyRules(g, size, i)}
			if s, err := n.Set(t.Context(), next); err != nil || len(s.Problems) > 0 {
				t.Errorf("change %d: %v %v", i, err, s.Problems)
			}
		}
	})
	sent := 0
	for running := true; running; sent++ {
		select {
		case <-changed:
			running = false
		default:
		}
		question := fmt.Sprintf("datagram %d", sent)
		_ = client.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := client.Write([]byte(question)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		k, err := client.Read(buf)
		if err != nil || string(buf[:k]) != question {
			t.Fatalf("%s: %q came back, %v", question, buf[:k], err)
		}
	}
	t.Logf("%d datagrams went to and fro", sent)
}

func listenUDPIn(t testing.TB, path string, at netip.AddrPort) (c *net.UDPConn) {
	t.Helper()
	in(t, path, func() (err error) {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

func dialUDPIn(t testing.TB, path string, to netip.AddrPort) (c *net.UDPConn) {
	t.Helper()
	in(t, path, func() (err error) {
		c, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// BenchmarkRules is the time until rules are in the kernel and read back: a change of one
// of 1,000 rules, of all of them, and of the NSG of 100 members.
func BenchmarkRules(b *testing.B) {
	for name, change := range map[string]func(g core.GoalVNet, turn int) core.GoalVNet{
		"one of 1000": func(g core.GoalVNet, turn int) core.GoalVNet { return manyRules(g, 1000, turn) },
		"all of 1000": func(g core.GoalVNet, turn int) core.GoalVNet {
			g = manyRules(g, 1000, 0)
			for i := range g.NSGs[0].Rules[:1000] {
				g.NSGs[0].Rules[i].Source = []string{fmt.Sprintf("10.20.%d.%d", turn%250, i%250)}
			}
			return g
		},
		"100 members": func(g core.GoalVNet, turn int) core.GoalVNet {
			g = manyRules(g, 1000, 0)
			for i := range 100 {
				g.NICs = append(g.NICs, core.GoalNIC{Address: nth(g.Subnets[0].Prefix, uint32(10+i)), Gateway: "bi", NSG: g.NSGs[turn%2].Name})
			}
			return g
		},
	} {
		b.Run(name, func(b *testing.B) {
			l := newLab(b)
			n := l.up()
			g := corp("u1")
			var took []time.Duration
			turn := 0
			for b.Loop() {
				turn++
				cfg := hostnet.Config{VNets: []core.GoalVNet{change(g, turn)}}
				began := time.Now()
				l.set(n, cfg)
				if turn > 1 { // the first builds the network
					took = append(took, time.Since(began))
				}
			}
			slices.Sort(took)
			if len(took) > 0 {
				b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
				b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
			}
		})
	}
}

// BenchmarkNewFlows opens TCP connections from member to member: through the rule for
// established flows alone (no NSG), and through 1,000 rules in either form.
func BenchmarkNewFlows(b *testing.B) {
	for _, c := range []struct {
		name        string
		rules       int
		bucketsFrom int
	}{{"no rules", 0, 0}, {"1000 in buckets", 1000, 0}, {"1000 linear", 1000, 1 << 20}} {
		b.Run(c.name, func(b *testing.B) {
			l := newLab(b)
			g := corp("u1")
			if c.rules == 0 {
				g.Subnets[0].NSG, g.Subnets[1].NSG = "", ""
			} else {
				g = manyRules(g, c.rules, 0)
			}
			one, two := member(g, 1, 1), member(g, 2, 2)
			n := l.up()
			s := l.set(n, hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{one, two}})
			in := n.vnets[g.UID].input()
			in.BucketsFrom = c.bucketsFrom
			text, err := policy.CompileVNet(in)
			if err != nil {
				b.Fatal(err)
			}
			if err := n.vnets[g.UID].rules.apply(l.ctx(), text); err != nil {
				b.Fatal(err)
			}
			connectFlood(b, portOf(b, s, one), portOf(b, s, two), netip.AddrPortFrom(two.Address, 5432))
		})
	}
}

// connectFlood connects and resets, one after the other.
func connectFlood(b *testing.B, from, to string, at netip.AddrPort) {
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
	defer accepting.Wait()
	defer server.Close()
	in(b, from, func() error {
		for b.Loop() {
			c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(at))
			if err != nil {
				return err
			}
			c.SetLinger(0)
			c.Close()
		}
		return nil
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conn/s")
}
