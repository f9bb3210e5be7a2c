package service

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluice-gateway/sluice/internal/core"
)

// TestTunnelMetrics: a member is heard of by its own host, in its present generation, once.
func TestTunnelMetrics(t *testing.T) {
	t.Parallel()
	told := core.TunnelReport{Member: "m-1", Generation: 2, Connections: 4, Accepted: 9, Refused: 1, ToService: 500, ToMember: 30}
	stale, unknown, again := told, told, told
	stale.Generation, unknown.Member, again.ToService = 1, "m-7", 7
	c := &tunnelCollector{
		hosts: func() []core.Host {
			return []core.Host{{Name: "h1", Tunnels: []core.TunnelReport{again}}, {Name: "h2", Tunnels: []core.TunnelReport{stale, unknown, told, again}}}
		},
		members: func(core.TenantID) []core.Member {
			return []core.Member{{ID: "m-1", Generation: 2, Tenant: "t", Gateway: "g", Host: "h2"}, {ID: "m-2", Tenant: "t", Gateway: "g", Host: "h2"}}
		},
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(c)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	var got []string
	for line := range strings.Lines(w.Body.String()) {
		if !strings.HasPrefix(line, "#") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	of := `gateway="g",host="h2",member="m-1",`
	want := []string{
		`sluice_tunnel_bytes_total{direction="to_member",` + of + `tenant="t"} 30`,
		`sluice_tunnel_bytes_total{direction="to_service",` + of + `tenant="t"} 500`,
		`sluice_tunnel_connections{` + of + `tenant="t"} 4`,
		`sluice_tunnel_connections_total{` + of + `outcome="accepted",tenant="t"} 9`,
		`sluice_tunnel_connections_total{` + of + `outcome="refused",tenant="t"} 1`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
