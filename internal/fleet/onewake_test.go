package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/host"
	netfake "github.com/sluice-gateway/sluice/internal/hostnet/fake"
	boxfake "github.com/sluice-gateway/sluice/internal/sandbox/fake"
	"github.com/sluice-gateway/sluice/internal/splice"
)

// BenchmarkOneWake is one more member on a host that has many, from its placement to the
// report that it runs: store, goal state, wire, the host's comparison and its reports are
// the real ones, network and sandboxes those of a machine in memory.
func BenchmarkOneWake(b *testing.B) {
	for _, n := range []int{10, 300, 1_000, 5_000} {
		b.Run(fmt.Sprintf("members=%d", n), func(b *testing.B) { benchmarkOneWake(b, n) })
	}
}

func benchmarkOneWake(b *testing.B, n int) {
	r := newBenchRig(b, n)
	stop := r.realHost()
	defer stop()
	gw := GatewayRef{Tenant: tenant, Name: "bench", UID: "gb"}
	var took []time.Duration
	for b.Loop() {
		begun := time.Now()
		m := r.placeAnyway(gw)
		r.until("it runs", func() bool { return m.State == core.MemberInjected })
		took = append(took, time.Since(begun))
		b.StopTimer()
		if err := r.fleet.remove(context.Background(), m, "bench"); err != nil {
			b.Fatal(err)
		}
		r.until("it is gone", func() bool { return m.State == core.MemberGone })
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
}

// placeAnyway places a member whatever this machine's memory is: a host that does not tell
// has room.
func (r *rig) placeAnyway(gw GatewayRef) *member {
	r.t.Helper()
	for {
		r.fleet.mu.Lock()
		r.fleet.hosts["h"].info.Load = core.HostLoad{}
		r.fleet.mu.Unlock()
		m, err := r.fleet.place(context.Background(), gw)
		if err == nil {
			return m
		}
		if errs.ClassOf(err) != errs.Exhausted { // a report came between
			r.t.Fatal(err)
		}
	}
}

// until waits for a condition, which is looked at whenever something has changed.
func (r *rig) until(what string, cond func() bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := r.fleet.wait(ctx, cond); err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
}

// realHost runs a host on a machine in memory, and returns once it has made everything that
// the store knows true and the fleet has heard of it.
func (r *rig) realHost() (stop func()) {
	log := slog.New(slog.DiscardHandler)
	splicer := splice.Local(log)
	ctx, cancel := context.WithCancel(context.Background())
	h := host.New(host.Options{
		Name: "h", Installation: "i", Network: netfake.New(netfake.NewMachine()), Runtime: boxfake.New(boxfake.NewMachine(nil)),
		Dial: func(context.Context) (net.Conn, error) {
			a, b := net.Pipe()
			go func() { _ = r.fleet.ServeHost(ctx, "h", b) }() // what it says is of no interest
			return a, nil
		},
		DialService: func(context.Context) (*net.TCPConn, error) { return nil, errors.New("nothing is dialled here") },
		Splicer:     splicer, ServiceName: "s", ServiceCA: []byte("PEM"), Logger: log, Recheck: time.Hour,
	})
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	stop = func() {
		cancel()
		<-done
		splicer.Close()
	}
	r.until("everything runs", func() bool {
		for _, m := range r.fleet.live {
			if r.fleet.confirmed(m).IsZero() || !m.joinStored {
				return false
			}
		}
		return true
	})
	for _, m := range r.fleet.Members(tenant) { // one that is starting reserves memory
		r.fleet.TunnelUp(m.ID, m.Generation)
	}
	return stop
}
