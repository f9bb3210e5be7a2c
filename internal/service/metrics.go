package service

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluice-gateway/sluice/internal/core"
)

// metrics are what GET /metrics shows, in Prometheus's form.
type metrics struct {
	registry *prometheus.Registry
	queries  *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	phases   *prometheus.HistogramVec
	rows     prometheus.Counter
	bytes    prometheus.Counter
	retried  prometheus.Counter
	own      []prometheus.Collector // those that docs/metrics.md describes
}

// buckets of durations, in seconds: from a short query to a long refresh.
var buckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 15, 60, 300, 1800}

func newMetrics(s *Service) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_queries_total", Help: "Queries that ended, by how, and for failures by the step that failed.",
		}, []string{"state", "step"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_query_seconds", Help: "Whole time of queries, by query class.", Buckets: buckets,
		}, []string{"class"}),
		phases: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_query_phase_seconds", Help: "Time of each phase of queries.", Buckets: buckets,
		}, []string{"phase"}),
		rows:  prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_result_rows_total", Help: "Rows of results."}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_result_bytes_total", Help: "Bytes of results as Arrow IPC."}),
		retried: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_queries_retried_total", Help: "Queries that ran again because their member was lost before it answered.",
		}),
	}
	m.own = []prometheus.Collector{
		m.queries, m.seconds, m.phases, m.rows, m.bytes, m.retried, &fleetCollector{s}, &admissionCollector{s}, &natCollector{s.opts.Fleet.Hosts}, &tunnelCollector{s.opts.Fleet.Hosts, s.opts.Fleet.Members},
	}
	m.registry.MustRegister(m.own...)
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// ended counts a query that ended.
func (m *metrics) ended(q core.Query) {
	m.queries.WithLabelValues(string(q.State), q.ErrorStep).Inc()
	m.seconds.WithLabelValues(string(q.Class)).Observe(q.EndedAt.Sub(q.StartedAt).Seconds())
	for _, p := range q.Phases {
		m.phases.WithLabelValues(p.Name).Observe(p.Duration.Seconds())
	}
	if q.Retried != "" {
		m.retried.Inc()
	}
	m.rows.Add(float64(q.Rows))
	m.bytes.Add(float64(q.Bytes))
}

// Metrics answers GET /metrics.
func (s *Service) Metrics() http.Handler {
	return promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{})
}

// fleetCollector reads the fleet at each scrape.
type fleetCollector struct{ svc *Service }

var (
	membersDesc     = prometheus.NewDesc("sluice_members", "Members that exist, by state.", []string{"state"}, nil)
	gatewaysDesc    = prometheus.NewDesc("sluice_gateways", "Gateways that exist, by state.", []string{"state"}, nil)
	transitionsDesc = prometheus.NewDesc("sluice_transitions_total", "Changes of state of gateways and members, by what caused them.", []string{"of", "event", "to"}, nil)
	hostsDesc       = prometheus.NewDesc("sluice_hosts_connected", "Hosts that are connected.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *fleetCollector) Describe(out chan<- *prometheus.Desc) {
	out <- membersDesc
	out <- gatewaysDesc
	out <- transitionsDesc
	out <- hostsDesc
}

// Collect implements prometheus.Collector.
func (c *fleetCollector) Collect(out chan<- prometheus.Metric) {
	count := map[core.MemberState]int{core.MemberPlaced: 0, core.MemberInjected: 0, core.MemberReady: 0, core.MemberDraining: 0, core.MemberSuspect: 0, core.MemberLeaving: 0}
	for _, m := range c.svc.opts.Fleet.Members("") {
		count[m.State]++
	}
	for state, n := range count {
		out <- prometheus.MustNewConstMetric(membersDesc, prometheus.GaugeValue, float64(n), string(state))
	}
	gateways := c.svc.opts.Fleet.GatewayStates()
	for _, state := range []core.GatewayState{core.GatewayPaused, core.GatewayWaking, core.GatewayRunning, core.GatewayDraining, core.GatewayFailed} {
		out <- prometheus.MustNewConstMetric(gatewaysDesc, prometheus.GaugeValue, float64(gateways[state]), string(state))
	}
	for t, n := range c.svc.opts.Fleet.Transitions() {
		out <- prometheus.MustNewConstMetric(transitionsDesc, prometheus.CounterValue, float64(n), t.Of, t.Event, t.To)
	}
	out <- prometheus.MustNewConstMetric(hostsDesc, prometheus.GaugeValue, float64(len(c.svc.opts.Fleet.Hosts())))
}
