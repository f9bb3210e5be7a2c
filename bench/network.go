package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

// The networks that connections are made through.
const (
	noRules   = "the rule for established flows alone"
	inBuckets = "1,000 rules"
	inALine   = "1,000 rules, one after the other"
	logged    = "flow log on"
	unlogged  = "flow log off"
	natPath   = "NSG and NAT gateway"
	barePath  = "the same hops without rules"
	tunnel    = "the tunnel"
	plainVeth = "plain veth"
)

// manyRules is the most that an NSG may have, but one.
const manyRules = 999

// packets measures what rules and address translation cost a packet, and a change.
func packets(ctx context.Context, e *env) (*result, error) {
	b := &packetRun{env: e}
	var out []row
	for _, part := range []func(context.Context) ([]row, error){b.newConnections, b.throughput, b.changes} {
		rows, err := part(ctx)
		if err != nil {
			return nil, err
		}
		out = append(out, rows...)
	}
	return &result{Rows: out, Samples: b.samples.list}, nil
}

type packetRun struct {
	env     *env
	samples samples
}

// newConnections connects from member to member through each form of rules.
func (b *packetRun) newConnections(ctx context.Context) ([]row, error) {
	withLog := network(rules(10, 0))
	withLog.NSGs[0].FlowLog = core.FlowLog{Enabled: true, Interval: core.Duration(time.Minute), RetentionDays: 1, MaxMiB: 64}
	var ways []way
	for _, c := range []struct {
		name        string
		network     core.GoalVNet
		bucketsFrom int
	}{
		{noRules, network(nil), 0}, {inBuckets, network(rules(manyRules, 0)), 0}, {inALine, network(rules(manyRules, 0)), 1 << 20},
		{logged, withLog, 0}, {unlogged, network(rules(10, 0)), 0},
	} {
		f, err := newFabric(b.env.t, c.bucketsFrom)
		if err != nil {
			return nil, err
		}
		spaces, err := f.set(ctx, c.network, port(1), port(2))
		if err != nil {
			return nil, err
		}
		at := netip.AddrPortFrom(port(2).Address, 5432)
		ways = append(ways, way{c.name, func(context.Context) error {
			rate, err := connections(spaces[0], spaces[1], at, b.env.scale.Connections)
			b.samples.add("new connections: "+c.name, "conn/s", rate)
			return err
		}})
	}
	if err := alternate(ctx, b.env.scale.PacketRounds, ways); err != nil {
		return nil, err
	}
	bucketed := b.compare("new TCP connections per second", "new connections: ", inBuckets, noRules, "conn/s")
	flowLog := b.compare("new TCP connections per second", "new connections: ", logged, unlogged, "conn/s")
	return []row{
		bucketed.goal("≥ 0.9", *bucketed.Ratio >= 0.9),
		flowLog.goal("≥ 0.95", *flowLog.Ratio >= 0.95),
		b.compare("new TCP connections per second", "new connections: ", inALine, noRules, "conn/s"),
	}, nil
}

func (b *packetRun) compare(figure, prefix, this, base, unit string) row {
	a, z := b.samples.of(prefix+this), b.samples.of(prefix+base)
	return row{Figure: "packets: " + figure + ", " + this, This: quantity{Value: median(a), Unit: unit}, Runs: len(a)}.
		against(quantity{median(z), unit, base}, ratio(a, z))
}

// connections makes n connections, one after the other, and returns how many a second.
func connections(from, to string, at netip.AddrPort, n int) (float64, error) {
	server, err := listenIn(to, at.String())
	if err != nil {
		return 0, err
	}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := server.AcceptTCP()
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, c) // until the client's reset
			_ = c.Close()
		}
	})
	defer accepting.Wait()
	defer server.Close()
	begun := time.Now()
	err = inside(from, func() error {
		for range n {
			c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(at))
			if err != nil {
				return err
			}
			_ = c.SetLinger(0)
			_ = c.Close()
		}
		return nil
	})
	return float64(n) / time.Since(begun).Seconds(), err
}

// throughput sends one stream from a member through its NSG and its NAT gateway to the
// world, and back; over its tunnel, over a veth pair, and through as many namespaces as
// its way out has: what is between the last two is the price of hops, not of rules.
func (b *packetRun) throughput(ctx context.Context) ([]row, error) {
	f, err := newFabric(b.env.t, 0)
	if err != nil {
		return nil, err
	}
	spaces, err := f.set(ctx, network(rules(manyRules, 0)), port(1))
	if err != nil {
		return nil, err
	}
	bareFrom, bareTo, bareAddr, err := bareWay(b.env.t, f.id)
	if err != nil {
		return nil, err
	}
	relay, err := f.net.TunnelListener()
	if err != nil {
		return nil, err
	}
	ways := []way{{tunnel, func(context.Context) error {
		rate, err := streamTo(relay.(*net.TCPListener), spaces[0], b.env.scale.StreamMB<<20, false)
		b.samples.add("one stream: "+tunnel, "MB/s", rate/1e6)
		return err
	}}}
	for _, p := range []struct{ name, from, to, addr string }{
		{natPath, spaces[0], f.world, fabricWorld},
		// The host's and the world's stand-ins are joined by nothing but a veth pair.
		{plainVeth, f.host, f.world, fabricWorld},
		{barePath, bareFrom, bareTo, bareAddr},
	} {
		for figure, back := range map[string]bool{"one stream: ": false, "one stream back: ": true} {
			ways = append(ways, way{figure + p.name, func(context.Context) error {
				rate, err := stream(p.from, p.to, p.addr+":7000", b.env.scale.StreamMB<<20, back)
				b.samples.add(figure+p.name, "MB/s", rate/1e6)
				return err
			}})
		}
	}
	if err := alternate(ctx, b.env.scale.PacketRounds, ways); err != nil {
		return nil, err
	}
	r := b.compare("one stream", "one stream: ", natPath, plainVeth, "MB/s")
	return []row{
		r.goal("≥ 0.95", *r.Ratio >= 0.95),
		b.compare("one stream", "one stream: ", natPath, barePath, "MB/s"),
		b.compare("one stream", "one stream: ", barePath, plainVeth, "MB/s"),
		b.compare("one stream to the member", "one stream back: ", natPath, plainVeth, "MB/s"),
		b.compare("one stream to the member", "one stream back: ", barePath, plainVeth, "MB/s"),
		b.compare("one stream", "one stream: ", tunnel, plainVeth, "MB/s"),
	}, nil
}

// stream sends n bytes and returns how many a second arrived.
func stream(from, to, addr string, n int64, back bool) (float64, error) {
	server, err := listenIn(to, addr)
	if err != nil {
		return 0, err
	}
	defer server.Close()
	return streamTo(server, from, n, back)
}

// streamTo connects to a server from a namespace, and sends n bytes there, or back.
func streamTo(server *net.TCPListener, from string, n int64, back bool) (float64, error) {
	var client net.Conn
	if err := inside(from, func() (err error) {
		client, err = net.DialTimeout("tcp4", server.Addr().String(), 5*time.Second)
		return err
	}); err != nil {
		return 0, err
	}
	defer client.Close()
	_ = server.SetDeadline(time.Now().Add(time.Minute))
	accepted, err := server.AcceptTCP()
	if err != nil {
		return 0, err
	}
	defer accepted.Close()
	sender, receiver := client, net.Conn(accepted)
	if back {
		sender, receiver = receiver, sender
	}
	begun := time.Now()
	go func() {
		buf := make([]byte, 256<<10)
		for left := n; left > 0; left -= int64(len(buf)) {
			if _, err := sender.Write(buf[:min(left, int64(len(buf)))]); err != nil {
				return // the reader misses it
			}
		}
		_ = sender.(*net.TCPConn).CloseWrite()
	}()
	// As large a buffer as the sender's: neither end's own copying takes its place.
	got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{receiver}, make([]byte, 256<<10))
	if err == nil && got != n {
		err = fmt.Errorf("%d bytes came, want %d", got, n)
	}
	return float64(n) / time.Since(begun).Seconds(), err
}

// changes measures how long a change takes until the kernel has it and was read back.
func (b *packetRun) changes(ctx context.Context) ([]row, error) {
	one := func(turn int) core.GoalVNet { return network(rules(manyRules, turn)) }
	all := func(turn int) core.GoalVNet {
		g := network(rules(manyRules, 0))
		for i := range g.NSGs[0].Rules[:manyRules] {
			g.NSGs[0].Rules[i].Source = []string{fmt.Sprintf("10.20.%d.%d", turn%250, i%250)}
		}
		return g
	}
	members := func(turn int) core.GoalVNet {
		g := network(rules(manyRules, 0))
		g.NSGs = append(g.NSGs, core.NetworkSecurityGroup{Name: "other", Rules: rules(10, 0)})
		for i := range 100 {
			g.NICs = append(g.NICs, core.GoalNIC{
				Address: netip.AddrFrom4([4]byte{10, 20, 0, byte(10 + i)}), Gateway: "bench", NSG: g.NSGs[turn%2].Name,
			})
		}
		return g
	}
	var out []row
	for _, c := range []struct {
		name string
		next func(turn int) core.GoalVNet
		goal float64 // ms at p99; 0: none
	}{{"one of 1,000 rules changed", one, 50}, {"all of 1,000 rules changed", all, 0}, {"the NSG of 100 members changed", members, 0}} {
		f, err := newFabric(b.env.t, 0)
		if err != nil {
			return nil, err
		}
		var took []float64
		for turn := range b.env.scale.Changes + 1 {
			g, begun := c.next(turn), time.Now()
			if _, err := f.set(ctx, g); err != nil {
				return nil, err
			}
			if turn > 0 { // the first makes the network
				took = append(took, float64(time.Since(begun).Microseconds())/1000)
				b.samples.add("change: "+c.name, "ms", took[len(took)-1])
			}
		}
		p99 := row{Figure: "packets: " + c.name + ", p99", This: quantity{Value: quantile(took, 0.99), Unit: "ms"}, Runs: len(took)}
		if c.goal > 0 {
			p99 = p99.goal(fmt.Sprintf("≤ %g ms", c.goal), p99.This.Value <= c.goal)
		}
		out = append(out, row{Figure: "packets: " + c.name + ", p50", This: quantity{Value: median(took), Unit: "ms"}, Runs: len(took)}, p99)
	}
	return out, nil
}
