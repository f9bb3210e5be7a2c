package host

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/sandbox"
)

// Labels that a sandbox carries, so that a later process knows whose it is.
const (
	labelMember     = "member"
	labelGeneration = "generation"
	labelGateway    = "gateway"
)

// Bounds on one start and one stop of a sandbox.
const (
	startTimeout = 30 * time.Second
	stopTimeout  = 60 * time.Second
)

// lingerRecheck is when a teardown that is not complete is looked at again.
const lingerRecheck = 20 * time.Millisecond

func (h *Host) reconcileLoop(ctx context.Context) {
	recheck := time.NewTicker(h.opts.Recheck)
	defer recheck.Stop()
	for {
		h.reconcile(ctx)
		poke(h.say)
		select {
		case <-ctx.Done():
			return
		case <-h.kick:
		case <-recheck.C:
			h.mu.Lock()
			h.stale = true
			h.mu.Unlock()
		}
	}
}

// reconcile makes one pass: what should not run is stopped, networks are made equal,
// what should run is started. Starts and stops go on beside it and kick it again.
func (h *Host) reconcile(ctx context.Context) {
	h.refresh(ctx)
	h.mu.Lock()
	goal := h.goal
	h.mu.Unlock()
	if goal == nil || ctx.Err() != nil {
		return // nothing is known to be unwanted
	}
	want := map[string]core.GoalMember{}
	for _, m := range h.withAddress(goal) {
		want[sandboxID(m.ID, m.Generation)] = m
	}
	h.stopUnwanted(ctx, want)
	h.issueTokens(want)
	begun := time.Now()
	status, err := h.opts.Network.Set(ctx, h.config(ctx, goal, want))
	if ctx.Err() != nil {
		return
	}
	h.takeStatus(goal, status, err)
	h.seeGone(ctx)
	h.startWanted(ctx, want, time.Since(begun))
}

// refresh reads the sandboxes from the runtime if something may have changed there.
func (h *Host) refresh(ctx context.Context) {
	h.mu.Lock()
	stale := h.stale
	h.stale = false
	ran := map[*box]bool{} // what starts while the runtime lists may be missing from the list, or half made in it
	for _, b := range h.boxes {
		ran[b] = b.state == boxRunning
	}
	waited := slices.Clone(h.pool.waiting)
	h.mu.Unlock()
	if !stale {
		return
	}
	states, err := h.opts.Runtime.List(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		h.stale = true
		if ctx.Err() == nil {
			h.log.Warn("sandboxes can't be listed", "error", err)
		}
		return
	}
	h.known = true
	seen := map[string]bool{}
	for _, s := range states {
		if s.Blank {
			h.observeBlank(ctx, s, slices.Contains(waited, s.ID))
			continue
		}
		seen[s.ID] = true
		b := h.boxes[s.ID]
		h.observe(s, b == nil || ran[b])
	}
	for id, b := range h.boxes {
		if !seen[id] && ran[b] && b.state == boxRunning {
			b.state, b.exit = boxEnded, "the container is gone from the host"
		}
	}
}

// observe takes in one sandbox's state. One that did not run yet when it was asked for may
// have come up since: its end is believed the next time. The caller holds mu.
func (h *Host) observe(s sandbox.State, ran bool) {
	b := h.boxes[s.ID]
	if b == nil {
		generation, _ := strconv.ParseInt(s.Labels[labelGeneration], 10, 64)
		b = &box{id: s.ID, member: s.Labels[labelMember], generation: generation, state: boxRunning}
		h.boxes[s.ID] = b
	}
	if s.Running {
		b.image = s.Image
	}
	switch {
	case s.Running || b.state != boxRunning:
	case !ran:
		h.stale = true
		poke(h.kick)
	default:
		b.state, b.exit = boxEnded, s.Exit.Reason
		if b.exit == "" {
			b.exit = "the member ended"
		}
		b.wrote = lastLine(s.Exit.LogTail)
		h.log.Warn("member ended", "member", b.member, "reason", b.exit, "log", s.Exit.LogTail)
	}
}

// stopUnwanted begins to stop every sandbox that the goal state does not hold.
func (h *Host) stopUnwanted(ctx context.Context, want map[string]core.GoalMember) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, b := range h.boxes {
		if _, ok := want[id]; ok || b.state == boxStopping || b.state == boxStarting {
			continue
		}
		b.state = boxStopping
		h.work.Go(func() { h.stopBox(ctx, b) })
	}
}

func (h *Host) stopBox(ctx context.Context, b *box) {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	err := h.opts.Runtime.Stop(ctx, b.id)
	h.mu.Lock()
	if err == nil {
		delete(h.boxes, b.id)
		h.log.Info("member stopped", "member", b.member, "generation", b.generation)
	} else {
		b.state, b.exit = boxEnded, "it could not be stopped: "+err.Error()
		h.log.Warn("member could not be stopped, will try again", "member", b.member, "error", err)
	}
	h.mu.Unlock()
	if err == nil {
		poke(h.kick)
	} // else the next recheck tries again
}

// config is what the network must be: the goal state's, and the ports of sandboxes
// that have not stopped yet.
func (h *Host) config(ctx context.Context, goal *core.GoalState, want map[string]core.GoalMember) hostnet.Config {
	cfg := hostnet.Config{VNets: goal.VNets}
	for _, m := range h.withAddress(goal) {
		cfg.Ports = append(cfg.Ports, portOf(m))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, b := range h.boxes {
		if _, ok := want[id]; !ok && b.port.Member != "" && hasVNet(goal, b.port.VNetUID) {
			cfg.Ports = append(cfg.Ports, b.port)
		}
	}
	cfg.Prepared = h.promise(ctx, want)
	return cfg
}

func hasVNet(goal *core.GoalState, uid string) bool {
	for _, v := range goal.VNets {
		if v.UID == uid {
			return true
		}
	}
	return false
}

func portOf(m core.GoalMember) hostnet.Port {
	return hostnet.Port{
		Member: m.ID, Generation: m.Generation, VNetUID: m.VNetUID, Subnet: m.Subnet,
		Address: m.Address, TunnelAddress: m.TunnelAddress,
	}
}

// takeStatus keeps what Set made true.
func (h *Host) takeStatus(goal *core.GoalState, status hostnet.Status, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var problems []string
	if err != nil {
		problems = append(problems, err.Error())
	}
	for _, p := range status.Problems {
		problems = append(problems, fmt.Sprintf("%s: %v", p.Object, p.Err))
	}
	for _, p := range problems {
		h.log.Warn("the network is not as it should be", "problem", p)
	}
	for k := range h.ports {
		if _, ok := status.Ports[k]; !ok {
			h.going[k] = true
		}
	}
	for k := range status.Ports {
		delete(h.going, k) // it is back: it was not going
	}
	if h.acted != goal.Version {
		poke(h.look)
	}
	h.problems, h.ports, h.acted = problems, status.Ports, goal.Version
	h.takeLeases(goal, status.Leased)
	tunnels := map[netip.Addr]hostnet.PortKey{}
	for _, m := range goal.Members {
		tunnels[m.TunnelAddress] = hostnet.PortKey{Member: m.ID, Generation: m.Generation}
	}
	if old := h.tunnels.Swap(&tunnels); old != nil {
		h.forgetTunnels(*old, tunnels)
	}
}

// forgetTunnels resets the connections of members that are gone. Another may have the address.
func (h *Host) forgetTunnels(old, now map[netip.Addr]hostnet.PortKey) {
	for addr, k := range old {
		if now[addr] == k {
			continue
		}
		if err := h.relay.Forget(addr); err != nil {
			h.log.Warn("connections of a member that is gone stay until they are noticed to be dead", "tunnelAddress", addr, "error", err)
		}
	}
}

// seeGone asks the machine whether the ports that were taken out are gone: until then
// they are reported as present, because a teardown counts only when it is complete.
func (h *Host) seeGone(ctx context.Context) {
	h.mu.Lock()
	going := slices.Collect(maps.Keys(h.going))
	h.mu.Unlock()
	if len(going) == 0 {
		return
	}
	left, err := h.opts.Network.Left(ctx, going)
	if err != nil {
		h.log.Warn("whether members' networks are gone from the machine can't be seen", "error", err)
		left = going
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range going {
		if !slices.Contains(left, k) {
			delete(h.going, k)
		}
	}
	if len(h.going) > 0 {
		time.AfterFunc(lingerRecheck, func() { poke(h.kick) })
	}
}

// startWanted begins to start every member that has a network and no sandbox.
func (h *Host) startWanted(ctx context.Context, want map[string]core.GoalMember, network time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.known {
		return // it might be running already
	}
	for id, m := range want {
		port := portOf(m)
		netns, ok := h.ports[port.Key()]
		if b := h.boxes[id]; b != nil || !ok {
			if b != nil {
				b.port = port
			}
			continue
		}
		token := newToken()
		if t := h.tokens[id]; t != nil {
			token = t.secret
			delete(h.tokens, id)
		}
		b := &box{id: id, member: m.ID, generation: m.Generation, state: boxStarting, port: port, joinHash: hashToken(token)}
		b.phases = []core.Phase{{Name: "network", Duration: network}}
		h.boxes[id] = b
		poke(h.say)
		blank := h.takePromised(port.Key())
		h.work.Go(func() { h.startBox(ctx, b, m, netns, token, blank) })
	}
}

func (h *Host) startBox(ctx context.Context, b *box, m core.GoalMember, netns, token, blank string) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	begun := time.Now()
	spec, err := h.spec(b, m, netns, token)
	image := h.lookAtProgram(ctx)
	if err == nil {
		err = h.run(ctx, blank, spec)
	}
	same := h.lookAtProgram(ctx) == image // else the next list tells which it was
	h.mu.Lock()
	b.phases = append(b.phases, core.Phase{Name: "sandbox", Duration: time.Since(begun)})
	if same {
		b.image = image
	}
	if err == nil {
		b.state = boxRunning
		h.stale = h.stale || ctx.Err() != nil
		h.log.Info("member started", "member", m.ID, "gateway", m.Gateway, "generation", m.Generation, "address", m.Address)
	} else {
		b.state, b.exit = boxEnded, "it could not be started: "+withHint(err)
		h.log.Warn("member could not be started", "member", m.ID, "gateway", m.Gateway, "error", err)
	}
	h.mu.Unlock()
	poke(h.say)
	poke(h.kick) // the goal state may have changed meanwhile
}

// spec describes a member's sandbox, with what it needs to dial back.
func (h *Host) spec(b *box, m core.GoalMember, netns, token string) (sandbox.Spec, error) {
	size := WithDefaults(m.Size)
	boot := memberapi.Boot{
		Member: m.ID, Generation: m.Generation, Relay: h.opts.Network.TunnelEndpoint().String(),
		ServiceName: h.opts.ServiceName, ServiceCA: string(h.opts.ServiceCA), JoinToken: token, MemoryMiB: size.MemoryMiB, CPUs: size.CPUs,
	}
	for _, a := range h.opts.Network.Resolvers(m.VNetUID, m.Subnet) {
		boot.DNSServers = append(boot.DNSServers, a.String())
	}
	doc, err := json.Marshal(boot)
	if err != nil {
		return sandbox.Spec{}, err
	}
	labels := map[string]string{
		labelMember: m.ID, labelGeneration: strconv.FormatInt(m.Generation, 10), labelGateway: m.Gateway,
	}
	return sandbox.Spec{ID: b.id, Labels: labels, NetNS: netns, Size: size, Boot: doc}, nil
}

// WithDefaults fills in the default size of a member: 2 CPUs (or what the machine
// has), 8 GiB.
func WithDefaults(s core.MemberSize) core.MemberSize {
	if s.CPUs == 0 {
		s.CPUs = float64(min(2, runtime.NumCPU()))
	}
	if s.MemoryMiB == 0 {
		s.MemoryMiB = 8192
	}
	return s
}

func sandboxID(member string, generation int64) string {
	return member + "-" + strconv.FormatInt(generation, 10)
}
