package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/internal/core"
)

//go:embed slow.yaml
var slowResources string

// The two ways of choosing a member: the service's, over a gateway of two members, and a
// client's that throws a coin between two gateways of one member each. In both one of the
// two members has slowShare of a CPU.
const (
	chosen    = "the service's choice"
	atRandom  = "random choice"
	slowShare = 0.03

	slowClients = 8
)

// slow asks two members of which one is slow.
func slow(ctx context.Context, e *env) (*result, error) {
	if err := e.applyText(slowResources); err != nil {
		return nil, err
	}
	defer e.stack.Must("delete", "datasource", "pair", "datasource", "left", "datasource", "right",
		"gateway", "pair", "gateway", "left", "gateway", "right")
	c, err := e.client()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for gateway, n := range map[string]int{"pair": 2, "left": 1, "right": 1} {
		members, err := e.ready(ctx, c, gateway, n)
		if err != nil {
			return nil, err
		}
		if gateway == "left" {
			continue
		}
		if err := e.throttle(members[0]); err != nil {
			return nil, err
		}
	}
	s := &samples{}
	rng := rand.New(rand.NewPCG(1, 2))
	ways := []way{
		{chosen, func(ctx context.Context) error {
			return e.slowOnce(ctx, chosen, s, func() string { return "pair" })
		}},
		{atRandom, func(ctx context.Context) error {
			return e.slowOnce(ctx, atRandom, s, func() string { return []string{"left", "right"}[rng.IntN(2)] })
		}},
	}
	if err := alternate(ctx, e.scale.ShortRounds, ways); err != nil {
		return nil, err
	}
	return &result{Rows: slowRows(s), Samples: s.list}, nil
}

// ready waits until a gateway has that many members.
func (e *env) ready(ctx context.Context, c *client.Client, gateway string, n int) ([]core.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := c.Gateway(ctx, "wake", gateway); err != nil {
		return nil, fmt.Errorf("wake gateway %s: %w", gateway, err)
	}
	for {
		all, err := c.List(ctx, "members")
		if err != nil {
			return nil, err
		}
		var mine []core.Member
		for _, doc := range all {
			var m core.Member
			if err := json.Unmarshal(doc, &m); err != nil {
				return nil, err
			}
			if m.Gateway == gateway && m.State == core.MemberReady {
				mine = append(mine, m)
			}
		}
		if len(mine) == n {
			return mine, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("gateway %s has %d members that are ready, want %d", gateway, len(mine), n)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// throttle leaves a member a small share of one CPU.
func (e *env) throttle(m core.Member) error {
	container, err := e.containerOf(m)
	if err != nil {
		return err
	}
	group := filepath.Join("sluice-"+e.stack.Instance(), container)
	const period = 100_000 // µs
	quota := fmt.Sprintf("%d", int(slowShare*period))
	v1 := filepath.Join("/sys/fs/cgroup/cpu", group)
	if _, err := os.Stat(v1); err == nil {
		return errors.Join(os.WriteFile(filepath.Join(v1, "cpu.cfs_period_us"), fmt.Append(nil, period), 0),
			os.WriteFile(filepath.Join(v1, "cpu.cfs_quota_us"), []byte(quota), 0))
	}
	return os.WriteFile(filepath.Join("/sys/fs/cgroup", group, "cpu.max"), []byte(quota+" "+fmt.Sprint(period)), 0)
}

// containerOf returns the name of a member's container: its own, or that of one that was
// started before the member was wanted.
func (e *env) containerOf(m core.Member) (string, error) {
	name := fmt.Sprintf("%s-%d", m.ID, m.Generation)
	raw, err := os.ReadFile(filepath.Join(e.stack.Run, "members", "bundles", name, "record.json"))
	if err != nil {
		return "", err
	}
	var rec struct{ Container string }
	if err := json.Unmarshal(raw, &rec); err != nil {
		return "", err
	}
	if rec.Container != "" {
		return rec.Container, nil
	}
	return name, nil
}

// slowOnce has one way of choosing run for one round.
func (e *env) slowOnce(ctx context.Context, name string, s *samples, source func() string) error {
	sources := make(chan string, slowClients) // one goroutine chooses: the order is the same in every run
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for {
			select {
			case sources <- source():
			case <-ctx.Done():
				return
			}
		}
	}()
	open := func(context.Context) (ask, func(), error) {
		c, err := e.client()
		if err != nil {
			return nil, nil, err
		}
		return func(ctx context.Context) error {
			var w wantOne
			if err := queryHTTP(ctx, c, client.Query{Source: <-sources, SQL: shortQuery}, w.use); err != nil {
				return err
			}
			return w.check()
		}, c.Close, nil
	}
	l, err := load(ctx, open, slowClients, e.scale.ShortQueries)
	if err != nil {
		return err
	}
	s.add(name+": p50", "ms", quantile(l.latencies, 0.5))
	s.add(name+": p99", "ms", quantile(l.latencies, 0.99))
	s.add(name+": rate", "q/s", l.perSecond)
	return nil
}

func slowRows(s *samples) (out []row) {
	for _, figure := range []struct{ name, unit string }{{"p50", "ms"}, {"p99", "ms"}, {"rate", "q/s"}} {
		this, base := s.of(chosen+": "+figure.name), s.of(atRandom+": "+figure.name)
		r := row{Figure: fmt.Sprintf("two members, one slow: short queries, %d clients, %s", slowClients, figure.name),
			This: quantity{Value: median(this), Unit: figure.unit}, Runs: len(this)}.
			against(quantity{median(base), figure.unit, atRandom}, ratio(this, base))
		if figure.name == "p99" {
			r = r.goal("≤ 0.5", *r.Ratio <= 0.5)
		}
		out = append(out, r)
	}
	return out
}
