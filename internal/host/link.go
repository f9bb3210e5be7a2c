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
	var sender sync.WaitGroup
	sender.Go(func() {
		defer cancel()
		h.sendReports(ctx, conn)
	})
	err = h.receiveGoals(conn)
	cancel()
	sender.Wait()
	return err
}

// receiveGoals takes goal states in. Within a connection versions only grow; a new
// connection begins anew, so that a service restored from a backup is obeyed.
func (h *Host) receiveGoals(conn net.Conn) error {
	newest := int64(-1)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(hostapi.Silence))
		var msg hostapi.ToHost
		if err := wire.Read(conn, &msg, 0); err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("the service closed the connection")
			}
			return err
		}
		if msg.Refused != "" {
			return errors.New("the service refuses this host: " + msg.Refused)
		}
		if msg.Goal == nil || msg.Goal.Version < newest {
			continue
		}
		newest = msg.Goal.Version
		h.mu.Lock()
		h.goal = msg.Goal
		h.mu.Unlock()
		poke(h.kick)
	}
}

func (h *Host) sendReports(ctx context.Context, conn net.Conn) {
	beat := time.NewTicker(hostapi.Heartbeat)
	defer beat.Stop()
	for report := h.report(); ; report = h.report() {
		_ = conn.SetWriteDeadline(time.Now().Add(hostapi.Silence))
		if err := wire.Write(conn, hostapi.ToService{Report: &report}); err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-h.say:
		case <-beat.C:
		}
	}
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
			o.Exit = b.exit
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
	h.observeLeases(&r)
	return r
}
