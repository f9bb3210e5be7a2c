package service

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-gateway/sluice/internal/core"
)

// natCollector reads what hosts told of their NAT gateways at each scrape.
type natCollector struct{ hosts func() []core.Host }

func natDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("sluice_nat_"+name, help, append([]string{"tenant", "vnet", "natgateway", "host"}, labels...), nil)
}

var (
	natBytesDesc       = natDesc("bytes_total", "Bytes that a NAT gateway passed on.", "direction")
	natPacketsDesc     = natDesc("packets_total", "Packets that a NAT gateway passed on, as the kernel handles them: a joined segment is one.", "direction")
	natDroppedDesc     = natDesc("dropped_packets_total", "Packets that came to a NAT gateway from either side and were not passed on.")
	natAttemptsDesc    = natDesc("connections_total", "Connections by what became of them: attempted, established, failed, closed, timed_out.", "state")
	natConnectionsDesc = natDesc("connections", "Connections that are tracked now.")
	natPortsUsedDesc   = natDesc("ports_used", "Ports of a public address in use.", "address", "protocol")
	natPortsDesc       = natDesc("ports", "Ports of a public address there are.", "address", "protocol")
	natUpDesc          = natDesc("datapath_up", "1 if packets have a way through the NAT gateway.")
	natConditionDesc   = natDesc("condition", "1 while a condition holds: PortsRunningOut and TrackingRunningOut from 85 % on, ForwardingBlocked, NotMade.", "type")
)

// Describe implements prometheus.Collector.
func (c *natCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{natBytesDesc, natPacketsDesc, natDroppedDesc, natAttemptsDesc, natConnectionsDesc,
		natPortsUsedDesc, natPortsDesc, natUpDesc, natConditionDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector. A host that names one NAT gateway twice is
// heard once: the whole scrape would fail otherwise.
func (c *natCollector) Collect(out chan<- prometheus.Metric) {
	type id struct {
		tenant     core.TenantID
		name, host string
	}
	seen := map[id]bool{}
	for _, h := range c.hosts() {
		for _, n := range h.NATGateways {
			if key := (id{n.Tenant, n.Name, h.Name}); !seen[key] {
				seen[key] = true
				natSeries{out, []string{string(n.Tenant), n.VNet, n.Name, h.Name}}.all(n)
			}
		}
	}
}

// natSeries writes the series of one NAT gateway on one host.
type natSeries struct {
	out    chan<- prometheus.Metric
	labels []string
}

func (s natSeries) count(d *prometheus.Desc, v uint64, labels ...string) {
	s.out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), append(s.labels[:4:4], labels...)...)
}

func (s natSeries) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s.out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append(s.labels[:4:4], labels...)...)
}

func (s natSeries) all(n core.NATGatewayReport) {
	s.count(natBytesDesc, n.BytesOut, "out")
	s.count(natBytesDesc, n.BytesIn, "in")
	s.count(natPacketsDesc, n.PacketsOut, "out")
	s.count(natPacketsDesc, n.PacketsIn, "in")
	s.count(natDroppedDesc, n.DroppedPackets)
	c := n.Connections
	for state, v := range map[string]uint64{
		"attempted": c.Attempted, "established": c.Established, "failed": c.Failed, "closed": c.Closed, "timed_out": c.TimedOut,
	} {
		s.count(natAttemptsDesc, v, state)
	}
	s.gauge(natConnectionsDesc, float64(c.Total))
	known := map[[2]string]bool{}
	for _, p := range n.Ports {
		if key := [2]string{p.Address, string(p.Protocol)}; !known[key] {
			known[key] = true
			s.gauge(natPortsUsedDesc, float64(p.Used), key[0], key[1])
			s.gauge(natPortsDesc, float64(p.Of), key[0], key[1])
		}
	}
	s.gauge(natUpDesc, truth(n.Up))
	holds := map[string]bool{}
	for _, c := range n.Conditions {
		holds[c.Type] = true
	}
	for _, kind := range []string{core.NATPortsRunningOut, core.NATTrackingRunningOut, core.NATForwardingBlocked, core.NATNotMade} {
		s.gauge(natConditionDesc, truth(holds[kind]), kind)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
