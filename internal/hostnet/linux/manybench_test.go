package linux

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// crowd is a virtual network with n members on this machine's kernel, and room for more.
func crowd(b *testing.B, n int) (*Network, *lab, hostnet.Config) {
	b.Helper()
	l := newLab(b)
	vn := withEndpoint(corp("u1"), "orders-db", "10.20.1.4", 5432, "127.0.0.1:5432")
	vn.Subnets[0].Prefix = netip.MustParsePrefix("10.20.16.0/20")
	cfg := hostnet.Config{VNets: []core.GoalVNet{vn}}
	for i := range n {
		cfg.Ports = append(cfg.Ports, crowded(vn, i))
	}
	net := l.up(func(o *Options) { o.VerifyEvery = time.Hour })
	for done := 0; done < n; done += 250 { // each within the lab's time
		part := cfg
		part.Ports = cfg.Ports[:min(n, done+250)]
		l.set(net, part)
	}
	return net, l, cfg
}

func crowded(vn core.GoalVNet, i int) hostnet.Port {
	return hostnet.Port{
		Member: fmt.Sprintf("m-%d", i), Generation: 1, VNetUID: vn.UID, Subnet: "gateways",
		Address: nth(vn.Subnets[0].Prefix, uint32(4+i)), TunnelAddress: nth(linkLocal, uint32(16+i)),
	}
}

// BenchmarkAddPortAmong is one more port in a virtual network that has many, and one less.
//
// Medians of 12 in ms, before (two runs) → since only a look at the whole network prunes it
// (one run), others at work on the machine's two cores:
//
//	ports   comes             goes
//	10      11, 22 → 17       21, 38 → 6
//	300     25, 50 → 29       38, 52 → 10
//	1,000   159, 87 → 49      119, 104 → 22
//
// With 1,000, dumping V's interfaces, routes and neighbours to prune took 50 ms. Compiling took 3
// to 11 and nft 10, beside the kernel's making of the interfaces, which takes 5 to 90 and does
// not grow with the ports: it has the last word on how soon one is there.
func BenchmarkAddPortAmong(b *testing.B) {
	for _, n := range []int{10, 300, 1000, 3000} {
		b.Run(fmt.Sprintf("ports=%d", n), func(b *testing.B) {
			net, l, cfg := crowd(b, n)
			more := cfg
			var came, went []time.Duration
			gen := int64(1)
			for b.Loop() {
				gen++
				p := crowded(cfg.VNets[0], n)
				p.Generation = gen
				more.Ports = append(slices.Clone(cfg.Ports), p)
				begun := time.Now()
				l.set(net, more)
				came = append(came, time.Since(begun))
				b.StopTimer()
				begun = time.Now()
				l.set(net, cfg)
				went = append(went, time.Since(begun))
				net.reaper.wait()
				b.StartTimer()
			}
			slices.Sort(came)
			slices.Sort(went)
			b.ReportMetric(ms(came[len(came)/2]), "came-p50-ms")
			b.ReportMetric(ms(went[len(went)/2]), "went-p50-ms")
		})
	}
}

// BenchmarkPortGone is what it takes to see that one port of many is gone. By the inventory
// of everything it took 4, 179 and 896 ms with 10, 300 and 1,000 ports, while no Set could run;
// now 0.2, 0.4 and 1.2.
func BenchmarkPortGone(b *testing.B) {
	for _, n := range []int{10, 300, 1000} {
		b.Run(fmt.Sprintf("ports=%d", n), func(b *testing.B) {
			net, _, cfg := crowd(b, n)
			gone := crowded(cfg.VNets[0], n).Key()
			for b.Loop() {
				if left, err := net.Left(b.Context(), []hostnet.PortKey{gone}); err != nil || len(left) > 0 {
					b.Fatal(left, err)
				}
			}
		})
	}
}
