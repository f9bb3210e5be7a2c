package linux

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// The share of ports, or of tracked flows, in per cent, from which on there is an alarm,
// and below which it ends. Linux looks for a free port at random, and begins to miss the
// last ones at about 90.
const (
	alarmFrom  = 85
	alarmUntil = 80
)

var _ hostnet.NATMeter = (*Network)(nil)

// natView is a NAT gateway as the report sees it, taken while nothing changes it.
type natView struct {
	uid, vnet, name string
	tenant          core.TenantID
	sources         []netip.Addr
	transit         netip.Addr
	link            string
	ready           bool
	err             error
	meter           *natMeter
}

// natRefusal is a NAT gateway that can't be planned, and why.
type natRefusal struct {
	name string
	err  error
}

// natAlarms remembers which conditions were told of, so that the log has a line for each
// change and a condition does not flicker.
type natAlarms map[string]bool

// forget drops what was told of NAT gateways that are gone.
func (a natAlarms) forget(views []*natView) {
	maps.DeleteFunc(a, func(key string, _ bool) bool {
		uid, _, _ := strings.Cut(key, " ")
		return !slices.ContainsFunc(views, func(v *natView) bool { return v.uid == uid })
	})
}

// NATGateways implements hostnet.NATMeter.
func (n *Network) NATGateways(ctx context.Context) ([]core.NATGatewayReport, error) {
	n.meters.Lock()
	defer n.meters.Unlock()
	views, firewall, err := n.natViews()
	if err != nil {
		return nil, err
	}
	n.alarms.forget(views)
	if len(views) == 0 {
		return nil, nil
	}
	blocked, fwErr := firewall.look(views)
	if fwErr != nil {
		n.log.Warn("the host's firewall can't be read", "error", fwErr)
	}
	var out []core.NATGatewayReport
	for _, v := range views {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r, err := n.natReport(v, blocked[v.link])
		if errors.Is(err, errMeterClosed) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("NATGateway/%s: %w", v.name, err)
		}
		out = append(out, r)
	}
	return out, nil
}

// natViews holds the lock of Set only for as long as it copies.
func (n *Network) natViews() ([]*natView, *hostFirewall, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tunnel == nil {
		return nil, nil, errNotUp()
	}
	var out []*natView
	for _, uid := range sortedKeys(n.vnets) {
		v := n.vnets[uid]
		for _, id := range sortedKeys(v.nats) {
			g := v.nats[id]
			out = append(out, &natView{
				uid: id, vnet: v.goal.Name, name: g.goal.Name, tenant: v.goal.Tenant, sources: g.sources(), transit: g.transit,
				link: n.names.natHostLink(id), ready: g.ready, err: g.err, meter: g.meter,
			})
		}
		for _, id := range sortedKeys(v.refused) {
			out = append(out, &natView{uid: id, vnet: v.goal.Name, name: v.refused[id].name, tenant: v.goal.Tenant, err: v.refused[id].err})
		}
	}
	firewall, err := n.hostSide.firewall(n.names)
	return out, firewall, err
}

func (n *Network) natReport(v *natView, blocked *core.NATCondition) (core.NATGatewayReport, error) {
	out := core.NATGatewayReport{UID: v.uid, Tenant: v.tenant, VNet: v.vnet, Name: v.name, At: time.Now(), Up: v.ready && blocked == nil}
	if v.err != nil {
		out.Conditions = append(out.Conditions, core.NATCondition{Type: core.NATNotMade, Message: v.err.Error(), Hint: errs.As(v.err).Hint})
	}
	if v.meter != nil {
		r, err := v.meter.read()
		if err != nil {
			return out, err
		}
		r.fill(&out, v)
		out.Conditions = append(out.Conditions, n.exhaustion(v, out.Ports, r)...)
	}
	if blocked != nil {
		out.Conditions = append(out.Conditions, *blocked)
	}
	n.tellConditions(v, out.Conditions)
	return out, nil
}

func (r natReading) fill(out *core.NATGatewayReport, v *natView) {
	t := r.totals
	out.At = r.at
	out.BytesOut, out.BytesIn, out.PacketsOut, out.PacketsIn, out.DroppedPackets = t.BytesOut, t.BytesIn, t.PacketsOut, t.PacketsIn, t.Dropped
	out.Connections = core.NATConnections{
		Total: r.flows, Attempted: t.Attempted, Established: t.Established, Failed: t.Failed, Closed: t.Closed, TimedOut: t.TimedOut,
	}
	out.Ports = r.report(v)
}

// exhaustion gives the alarms about ports and tracked flows.
func (n *Network) exhaustion(v *natView, ports []core.NATPorts, r natReading) (out []core.NATCondition) {
	for _, p := range ports {
		if n.alarm(v, core.NATPortsRunningOut, p.Address+" "+string(p.Protocol), uint64(p.Used), uint64(p.Of)) {
			out = append(out, core.NATCondition{
				Type:    core.NATPortsRunningOut,
				Message: fmt.Sprintf("%d of the %d %s ports of %s are taken: new connections to destinations that many use begin to fail", p.Used, p.Of, p.Protocol, p.Address),
				Hint:    "add public addresses, up to 16; or close connections sooner, and pool them",
			})
		}
	}
	if n.alarm(v, core.NATTrackingRunningOut, "", r.flows, r.max) {
		out = append(out, core.NATCondition{
			Type:    core.NATTrackingRunningOut,
			Message: fmt.Sprintf("%d of the %d connections that the host's kernel tracks per namespace exist", r.flows, r.max),
			Hint:    "raise the sysctl net.netfilter.nf_conntrack_max on the host: 64,512 for each public address and protocol is what its ports can carry to one destination",
		})
	}
	return out
}

// alarm says whether a share is in alarm; once it is, it stays so until it falls well below.
func (n *Network) alarm(v *natView, kind, of string, used, all uint64) bool {
	key := v.uid + " " + kind + " " + of
	percent := uint64(alarmFrom)
	if n.alarms[key] {
		percent = alarmUntil
	}
	n.alarms[key] = all > 0 && used*100 >= all*percent
	return n.alarms[key]
}

// tellConditions logs what began and what ended.
func (n *Network) tellConditions(v *natView, now []core.NATCondition) {
	seen := map[string]core.NATCondition{}
	for _, c := range now {
		seen[c.Type] = c
	}
	for _, kind := range []string{core.NATNotMade, core.NATForwardingBlocked, core.NATPortsRunningOut, core.NATTrackingRunningOut} {
		key := v.uid + " told " + kind
		c, holds := seen[kind]
		switch {
		case holds && !n.alarms[key]:
			n.log.Warn("a NAT gateway is in trouble", "natGateway", v.name, "vnet", v.vnet, "condition", kind, "reason", c.Message, "hint", c.Hint)
		case !holds && n.alarms[key]:
			n.log.Info("a NAT gateway's trouble is over", "natGateway", v.name, "vnet", v.vnet, "condition", kind)
		}
		n.alarms[key] = holds
	}
}
