package host

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

// meterTunnels looks now and then at what the relay carried, so that reports tell it.
func (h *Host) meterTunnels(ctx context.Context) {
	tick := time.NewTicker(h.opts.Meter)
	defer tick.Stop()
	for {
		list, err := h.tunnelReports(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			h.log.Warn("what the relay carried can't be told", "error", err)
		default:
			h.mu.Lock()
			news := !slices.Equal(h.carried, list)
			h.carried = list
			h.mu.Unlock()
			if news {
				poke(h.say)
			}
			if h.opts.TellTunnels != nil {
				h.opts.TellTunnels(list)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// tunnelReports are the relay's accounts of members that are present, by member.
func (h *Host) tunnelReports(ctx context.Context) ([]core.TunnelReport, error) {
	accounts, err := h.relay.Stats(ctx)
	if err != nil {
		return nil, err
	}
	present := h.tunnels.Load()
	if present == nil {
		return nil, nil
	}
	out := make([]core.TunnelReport, 0, len(accounts))
	for addr, s := range accounts {
		if k, ok := (*present)[addr]; ok {
			out = append(out, core.TunnelReport{
				Member: k.Member, Generation: k.Generation,
				Connections: s.Open, Accepted: s.Accepted, Refused: s.Refused, ToService: s.ToService, ToMember: s.ToMember,
			})
		}
	}
	slices.SortFunc(out, func(a, b core.TunnelReport) int {
		return cmp.Or(cmp.Compare(a.Member, b.Member), cmp.Compare(a.Generation, b.Generation))
	})
	return out, nil
}
