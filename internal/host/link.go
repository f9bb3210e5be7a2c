package host

import (
	"context"
	"errors"
	"io"
	"iter"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostapi"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/wire"
)

// Bounds on the wait between two attempts to reach the service.
const (
	minRedial = 50 * time.Millisecond
	maxRedial = 5 * time.Second
)

// talk keeps a connection to the service: goal states come in, reports go out.
func (h *Host) talk(ctx context.Context) {
	wait := minRedial
	for ctx.Err() == nil {
		begun := time.Now()
		err := h.converse(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begun) > maxRedial {
			wait = minRedial
		}
		h.log.Warn("not connected to the service, will try again", "error", err, "wait", wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, maxRedial)
	}
}

func (h *Host) converse(ctx context.Context) error {
	conn, err := h.opts.Dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	l := &link{host: h, conn: conn}
	var sender sync.WaitGroup
	sender.Go(func() {
		defer cancel()
		l.sendReports(ctx)
	})
	err = l.receiveGoals()
	cancel()
	sender.Wait()
	return err
}

// link is one connection to the service.
type link struct {
	host    *Host
	conn    net.Conn
	deltas  atomic.Bool // the service understands changes
	told    map[hostnet.PortKey]core.ObservedMember
	tunnels []core.TunnelReport // as told
	toldAll time.Time           // when it was told everything
}

// receiveGoals takes goal states in. Within a connection versions only grow; a new
// connection begins anew, so that a service restored from a backup is obeyed.
func (l *link) receiveGoals() error {
	newest := int64(-1)
	for {
		_ = l.conn.SetReadDeadline(time.Now().Add(hostapi.Silence))
		var msg hostapi.ToHost
		if err := wire.Read(l.conn, &msg, 0); err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("the service closed the connection")
			}
			return err
		}
		if msg.Refused != "" {
			return errors.New("the service refuses this host: " + msg.Refused)
		}
		if msg.Deltas {
			l.deltas.Store(true)
		}
		switch {
		case msg.Goal != nil && msg.Goal.Version >= newest:
			newest = msg.Goal.Version
			var sum core.GoalSum // nobody asks for it unless there are deltas
			if msg.Deltas {
				sum = msg.Goal.Sum()
			}
			l.host.takeGoal(*msg.Goal, sum)
		case msg.Delta != nil && msg.Delta.Version >= newest:
			newest = msg.Delta.Version
			l.host.takeDelta(*msg.Delta)
		}
	}
}

func (h *Host) takeGoal(goal core.GoalState, sum core.GoalSum) {
	h.mu.Lock()
	h.goal, h.sum = &goal, sum
	h.mu.Unlock()
	poke(h.kick)
}

// takeDelta changes the goal state. One that does not follow on it changes nothing: the
// service is asked for everything.
func (h *Host) takeDelta(d core.GoalDelta) {
	h.mu.Lock()
	var have core.GoalState
	if h.goal != nil {
		have = *h.goal
	}
	sum := h.sum
	h.mu.Unlock()
	goal, sum, err := have.Apply(d, sum)
	if err == nil {
		h.takeGoal(goal, sum)
		return
	}
	h.log.Warn("what has changed of the goal state can't be applied: the service is asked for all of it", "error", err)
	h.mu.Lock()
	h.askAll = true
	h.mu.Unlock()
	poke(h.say)
}

func (l *link) sendReports(ctx context.Context) {
	beat := time.NewTicker(hostapi.Heartbeat)
	defer beat.Stop()
	for {
		msg := l.host.message()
		if l.deltas.Load() && time.Since(l.toldAll) < hostapi.CompleteReport {
			msg.Changes, msg.Report = l.changes(*msg.Report), nil
		} else {
			l.tell(*msg.Report)
		}
		_ = l.conn.SetWriteDeadline(time.Now().Add(hostapi.Silence))
		if err := wire.Write(l.conn, msg); err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-l.host.say:
		case <-beat.C:
		}
	}
}

// tell remembers what the service is told.
func (l *link) tell(r core.HostReport) {
	l.tunnels = r.Tunnels
	l.toldAll, l.told = time.Now(), make(map[hostnet.PortKey]core.ObservedMember, len(r.Members))
	for _, o := range r.Members {
		l.told[keyOf(o)] = o
	}
}

// changes are what a report has that the service was not told, and what it has no more.
func (l *link) changes(r core.HostReport) *hostapi.Changes {
	all := r.Members
	c := &hostapi.Changes{HostReport: r}
	c.Members = nil
	if c.SameTunnels = slices.Equal(l.tunnels, r.Tunnels); c.SameTunnels {
		c.Tunnels = nil
	}
	l.tunnels = r.Tunnels
	for _, o := range all {
		if was, ok := l.told[keyOf(o)]; !ok || !was.Equal(o) {
			c.Members = append(c.Members, o)
			l.told[keyOf(o)] = o
		}
	}
	if len(l.told) == len(all) {
		return c
	}
	is := make(map[hostnet.PortKey]bool, len(all))
	for _, o := range all {
		is[keyOf(o)] = true
	}
	for k := range l.told {
		if !is[k] {
			delete(l.told, k)
			c.Gone = append(c.Gone, hostapi.Gone{ID: k.Member, Generation: k.Generation})
		}
	}
	return c
}

func keyOf(o core.ObservedMember) hostnet.PortKey {
	return hostnet.PortKey{Member: o.ID, Generation: o.Generation}
}

// message is a complete report, and what the host has of its goal state.
func (h *Host) message() hostapi.ToService {
	r := h.report()
	msg := hostapi.ToService{Report: &r}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.goal != nil {
		msg.Holds = &hostapi.Holds{Version: h.goal.Version, Sum: h.sum}
	}
	msg.Lost, h.askAll = h.askAll, false
	return msg
}

// report tells what this host observed.
func (h *Host) report() core.HostReport {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := core.HostReport{
		Host: h.opts.Name, Installation: h.opts.Installation, Version: h.acted, Complete: h.known && h.ports != nil,
		Problems: slices.Clone(h.problems), Image: h.program.image, NATGateways: h.nats, Tunnels: h.carried, Load: machineLoad(),
	}
	for _, problem := range []string{h.program.problem, h.pool.problem} {
		if problem != "" {
			r.Problems = append(r.Problems, problem)
		}
	}
	withBox := map[string]bool{}
	for _, b := range h.boxes {
		withBox[b.id] = true
		o := core.ObservedMember{
			ID: b.member, Generation: b.generation, Present: true, Running: b.state == boxRunning,
			JoinTokenHash: b.joinHash, Phases: b.phases, Image: b.image,
		}
		if b.state == boxEnded {
			o.Exit, o.Wrote = b.exit, b.wrote
		}
		r.Members = append(r.Members, o)
	}
	for _, ports := range []iter.Seq[hostnet.PortKey]{maps.Keys(h.ports), maps.Keys(h.going)} {
		for k := range ports {
			if id := sandboxID(k.Member, k.Generation); !withBox[id] {
				withBox[id] = true
				r.Members = append(r.Members, core.ObservedMember{ID: k.Member, Generation: k.Generation, Present: true})
			}
		}
	}
	h.observeTokens(&r)
	h.observeLeases(&r)
	return r
}
