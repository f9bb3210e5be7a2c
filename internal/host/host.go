// Package host makes a goal state true on one machine: networks, members, and the
// relay between the members' tunnels and the service.
//
// It compares what the service wants with what exists, changes the difference, and
// reports what it observed; every start, crash, repeat and reordering is that one
// case. Kernel and runtime are behind hostnet.Network and sandbox.Runtime. It holds
// no credential of a data source and no connector, and keeps no state of its own:
// what exists is read from the machine. cmd/sluice is its only caller.
package host

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/sandbox"
	"github.com/sluice-gateway/sluice/internal/splice"
	"github.com/sluice-gateway/sluice/internal/tunnel/relay"
)

// Options configure a Host.
type Options struct {
	Name string // Required: unique among the hosts of a service
	// Installation is the same for one run directory of one machine, for ever. Required.
	Installation string
	Network      hostnet.Network // Required
	Runtime      sandbox.Runtime // Required
	// Dial makes the authenticated connection for goal states. Required.
	Dial func(ctx context.Context) (net.Conn, error)
	// DialService makes a plain connection to the service's hosts address, for the
	// relay. Required, unless there is a Handover.
	DialService func(ctx context.Context) (*net.TCPConn, error)
	// Handover takes the members' connections to a service in this process. Optional.
	Handover *relay.Handover
	// Splicer joins the members' connections to the service. Required.
	Splicer     *splice.Splicer
	ServiceName string       // Required: the name in the service's certificate
	ServiceCA   []byte       // Required: PEM, handed to members
	Logger      *slog.Logger // Required
	// Recheck is how often the machine is compared although nothing happened. Default 30 s.
	Recheck time.Duration
	// Meter is how often the NAT gateways and the tunnels are looked at. Default 15 s.
	Meter time.Duration
	// Look is how often it is looked whether the members' program is another. Default 2 s.
	Look time.Duration
	// TellTunnels is called with what the relay carried, each time it was looked at. Default: none.
	TellTunnels func([]core.TunnelReport)
	// Pool is how many blank sandboxes wait to become members, if Network and Runtime can
	// make such. Default none.
	Pool int
}

// Host runs one machine.
type Host struct {
	opts Options
	log  *slog.Logger
	kick chan struct{} // capacity 1: something changed
	say  chan struct{} // capacity 1: there is something new to report
	look chan struct{} // capacity 1: the goal state changed, NAT gateways with it perhaps
	fill chan struct{} // capacity 1: the pool may lack a blank

	relay   *relay.Relay                                   // set by Run
	tunnels atomic.Pointer[map[netip.Addr]hostnet.PortKey] // tunnel addresses of present ports, and whose they are

	mu       sync.Mutex
	goal     *core.GoalState // nil until the service has spoken
	sum      core.GoalSum    // of goal
	askAll   bool            // the service is to send all of it
	acted    int64
	boxes    map[string]*box       // by sandbox ID
	tokens   map[string]*joinToken // of members that have no sandbox yet, by its ID
	ports    map[hostnet.PortKey]string
	going    map[hostnet.PortKey]bool       // taken out of the network, perhaps not gone yet
	leased   map[hostnet.PortKey]netip.Addr // by DHCP; invalid for those that wait
	lost     map[hostnet.PortKey]string     // members that have no address any more, and why
	problems []string
	nats     []core.NATGatewayReport
	carried  []core.TunnelReport
	known    bool // boxes were read from the runtime at least once
	stale    bool // boxes must be read from the runtime again
	pool     pool

	looking sync.Mutex // held while the members' program is looked at; taken before mu
	program program    // under mu

	work sync.WaitGroup // starts and stops under way
}

// phase of a box's life on this host.
type boxState int

const (
	boxStarting boxState = iota
	boxRunning
	boxEnded
	boxStopping
)

// box is one sandbox as this process knows it.
type box struct {
	id         string
	member     string
	generation int64
	state      boxState
	exit       string
	wrote      string // the last line of its log, once it ended
	image      string // of the program that it runs; "" if it is not known
	joinHash   string
	phases     []core.Phase
	port       hostnet.Port // zero for one that an earlier process started and nobody wants
}

// New makes a host. Run does the work.
func New(opts Options) *Host {
	if opts.Recheck == 0 {
		opts.Recheck = 30 * time.Second
	}
	if opts.Meter == 0 {
		opts.Meter = 15 * time.Second
	}
	if opts.Look == 0 {
		opts.Look = 2 * time.Second
	}
	return &Host{
		opts: opts, log: opts.Logger,
		kick: make(chan struct{}, 1), say: make(chan struct{}, 1), look: make(chan struct{}, 1), fill: make(chan struct{}, 1), pool: newPool(opts),
		boxes: map[string]*box{}, tokens: map[string]*joinToken{}, going: map[hostnet.PortKey]bool{}, lost: map[hostnet.PortKey]string{}, stale: true,
	}
}

// Run works until ctx ends. Members go on running afterwards.
func (h *Host) Run(ctx context.Context) error {
	if err := h.opts.Network.Up(ctx); err != nil {
		return fmt.Errorf("host: prepare the network: %w", err)
	}
	listener, err := h.opts.Network.TunnelListener()
	if err != nil {
		return fmt.Errorf("host: listen on the tunnels: %w", err)
	}
	rel, err := relay.New(relay.Options{Listener: listener, Dial: h.opts.DialService, Handover: h.opts.Handover, Known: h.knowsTunnel, Splicer: h.opts.Splicer, Logger: h.log})
	if err != nil {
		return fmt.Errorf("host: %w", err)
	}
	h.relay = rel
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { cancel(rel.Run(ctx)) })
	wg.Go(func() { h.talk(ctx) })
	wg.Go(func() { h.watchExits(ctx) })
	wg.Go(func() { h.meterNATs(ctx) })
	wg.Go(func() { h.watchProgram(ctx) })
	wg.Go(func() { h.meterTunnels(ctx) })
	wg.Go(func() { h.fillPool(ctx) })
	wg.Go(func() { h.watchNetwork(ctx) })
	h.reconcileLoop(ctx)
	cancel(nil)
	listener.Close()
	wg.Wait()
	h.work.Wait()
	h.drainPool(ctx)
	if err := h.opts.Network.Close(); err != nil {
		h.log.Warn("closing the network", "error", err)
	}
	return h.opts.Runtime.Close()
}

func (h *Host) knowsTunnel(a netip.Addr) bool {
	set := h.tunnels.Load()
	if set == nil {
		return false
	}
	_, known := (*set)[a.Unmap()]
	return known
}

// poke fills a channel of capacity 1.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (h *Host) watchExits(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.opts.Runtime.Exits():
			h.mu.Lock()
			h.stale = true
			h.mu.Unlock()
			poke(h.kick)
		}
	}
}
