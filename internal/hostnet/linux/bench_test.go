package linux

import (
	"slices"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// BenchmarkAddPort is the part of a wake that this package has: one more port in a
// virtual network that exists.
func BenchmarkAddPort(b *testing.B) {
	l := newLab(b)
	vn := withEndpoint(corp("u1"), "orders-db", "10.20.1.4", 5432, "127.0.0.1:5432")
	n := l.up()
	cfg := hostnet.Config{VNets: []core.GoalVNet{vn}}
	l.set(n, cfg)
	var took []time.Duration
	gen := int64(0)
	for b.Loop() {
		gen++
		p := member(vn, 1, 1)
		p.Generation = gen
		cfg.Ports = []hostnet.Port{p}
		began := time.Now()
		l.set(n, cfg)
		took = append(took, time.Since(began))
		b.StopTimer()
		l.set(n, hostnet.Config{VNets: cfg.VNets})
		n.reaper.wait()
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	b.ReportMetric(ms(took[len(took)*95/100]), "p95-ms")
}

// BenchmarkSetUnchanged is what each further goal state costs when nothing is new.
func BenchmarkSetUnchanged(b *testing.B) {
	l := newLab(b)
	vn := corp("u1")
	n := l.up()
	cfg := hostnet.Config{VNets: []core.GoalVNet{vn}}
	for i := range 9 {
		cfg.Ports = append(cfg.Ports, member(vn, i+1, i+1))
	}
	l.set(n, cfg)
	for b.Loop() {
		if _, err := n.Set(b.Context(), cfg); err != nil {
			b.Fatal(err)
		}
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
