package service

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-gateway/sluice/internal/core"
)

// tunnelCollector reads at each scrape what hosts told of their relays.
type tunnelCollector struct {
	hosts   func() []core.Host
	members func(core.TenantID) []core.Member
}

func tunnelDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("sluice_tunnel_"+name, help, append([]string{"tenant", "gateway", "member", "host"}, labels...), nil)
}

var (
	tunnelOpenDesc  = tunnelDesc("connections", "Connections of a member that its host's relay carries now.")
	tunnelEverDesc  = tunnelDesc("connections_total", "Connections of a member to its host's relay, by outcome: accepted, refused.", "outcome")
	tunnelBytesDesc = tunnelDesc("bytes_total", "Bytes that a host's relay carried for a member, by direction: to_service, to_member.", "direction")
)

// Describe implements prometheus.Collector.
func (c *tunnelCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{tunnelOpenDesc, tunnelEverDesc, tunnelBytesDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector. A member is heard of by its own host, once.
func (c *tunnelCollector) Collect(out chan<- prometheus.Metric) {
	members := map[string]core.Member{}
	for _, m := range c.members("") {
		members[m.ID] = m
	}
	for _, h := range c.hosts() {
		for _, r := range h.Tunnels {
			m, ok := members[r.Member]
			if !ok || m.Generation != r.Generation || m.Host != h.Name {
				continue
			}
			delete(members, r.Member)
			labels := []string{string(m.Tenant), m.Gateway, m.ID, h.Name}
			count := func(d *prometheus.Desc, v int64, label string) {
				out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), append(labels[:4:4], label)...)
			}
			out <- prometheus.MustNewConstMetric(tunnelOpenDesc, prometheus.GaugeValue, float64(r.Connections), labels...)
			count(tunnelEverDesc, r.Accepted, "accepted")
			count(tunnelEverDesc, r.Refused, "refused")
			count(tunnelBytesDesc, r.ToService, "to_service")
			count(tunnelBytesDesc, r.ToMember, "to_member")
		}
	}
}
