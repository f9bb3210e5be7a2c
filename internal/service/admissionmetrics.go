package service

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-gateway/sluice/internal/breaker"
	"github.com/sluice-gateway/sluice/internal/core"
)

// admissionCollector reads, at each scrape, what waits for gateways and which data sources
// can't be reached.
type admissionCollector struct{ svc *Service }

var (
	gatewayLabels = []string{"tenant", "gateway", "class"}
	sourceLabels  = []string{"tenant", "datasource"}

	queueDesc    = prometheus.NewDesc("sluice_queue_length", "Queries that wait for a slot of a gateway.", gatewayLabels, nil)
	slotsDesc    = prometheus.NewDesc("sluice_slots", "Slots of the gateway's ready members.", gatewayLabels, nil)
	usedDesc     = prometheus.NewDesc("sluice_slots_used", "Slots that are taken.", gatewayLabels, nil)
	refusedDesc  = prometheus.NewDesc("sluice_queue_refused_total", "Queries that were refused because the queue was full.", gatewayLabels, nil)
	downDesc     = prometheus.NewDesc("sluice_datasource_down", "1 while queries to a data source are refused because it could not be reached.", sourceLabels, nil)
	failuresDesc = prometheus.NewDesc("sluice_datasource_connect_failures", "Connections to a data source that failed in a row; absent for none.", sourceLabels, nil)
)

// Describe implements prometheus.Collector.
func (c *admissionCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{queueDesc, slotsDesc, usedDesc, refusedDesc, downDesc, failuresDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector. Gateways that were deleted and made again are
// one: a scrape must not have a series twice.
func (c *admissionCollector) Collect(out chan<- prometheus.Metric) {
	type key struct {
		tenant  core.TenantID
		gateway string
		class   core.QueryClass
	}
	sums := map[key][4]float64{}
	for ref, classes := range c.svc.opts.Fleet.Demands() {
		for class, d := range classes {
			k := key{ref.Tenant, ref.Name, class}
			v := sums[k]
			sums[k] = [4]float64{v[0] + float64(d.Queued), v[1] + float64(d.Slots), v[2] + float64(d.InFlight), v[3] + float64(d.Refused)}
		}
	}
	for k, v := range sums {
		labels := []string{string(k.tenant), k.gateway, string(k.class)}
		out <- prometheus.MustNewConstMetric(queueDesc, prometheus.GaugeValue, v[0], labels...)
		out <- prometheus.MustNewConstMetric(slotsDesc, prometheus.GaugeValue, v[1], labels...)
		out <- prometheus.MustNewConstMetric(usedDesc, prometheus.GaugeValue, v[2], labels...)
		out <- prometheus.MustNewConstMetric(refusedDesc, prometheus.CounterValue, v[3], labels...)
	}
	seen := map[[2]string]bool{}
	c.svc.breakers.each(func(t core.TenantID, name string, s breaker.Status) {
		if k := [2]string{string(t), name}; !seen[k] {
			seen[k] = true
			out <- prometheus.MustNewConstMetric(downDesc, prometheus.GaugeValue, truth(s.State != breaker.Available), k[0], k[1])
			out <- prometheus.MustNewConstMetric(failuresDesc, prometheus.GaugeValue, float64(s.Failures), k[0], k[1])
		}
	})
}
