package host

import (
	"context"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// meterAfter is how long after a change of the goal state the NAT gateways are looked at:
// whoever waits for the change comes first.
const meterAfter = time.Second

// meterNATs looks at the NAT gateways now and then, so that reports tell what they did. A
// network without that ability has nothing to tell.
func (h *Host) meterNATs(ctx context.Context) {
	meter, ok := h.opts.Network.(hostnet.NATMeter)
	if !ok {
		return
	}
	tick := time.NewTicker(h.opts.Meter)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-h.look:
			select {
			case <-ctx.Done():
				return
			case <-time.After(min(meterAfter, h.opts.Meter)):
			}
		}
		list, err := meter.NATGateways(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			h.log.Warn("what the NAT gateways did can't be told", "error", err)
			continue
		}
		h.takeNATs(list)
	}
}

func (h *Host) takeNATs(list []core.NATGatewayReport) {
	h.mu.Lock()
	had := len(h.nats)
	h.nats = list
	h.mu.Unlock()
	if had+len(list) > 0 {
		poke(h.say)
	}
}
