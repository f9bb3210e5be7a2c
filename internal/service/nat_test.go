package service

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluice-gateway/sluice/internal/core"
)

func natWorld() (nat core.Stored, all []core.Stored) {
	nat = core.Stored{Tenant: "t", UID: "n1", Spec: &core.NATGateway{Name: "egress", VNet: "corp"}}
	v := &core.VirtualNetwork{Name: "corp", Subnets: []core.Subnet{{Name: "s", Prefix: netip.MustParsePrefix("10.0.0.0/24"), NATGateway: "egress"}}}
	return nat, []core.Stored{nat, {Tenant: "t", UID: "v1", Spec: v}}
}

func TestNATGatewayStatus(t *testing.T) {
	t.Parallel()
	nat, all := natWorld()
	report := func(change ...func(*core.NATGatewayReport)) core.NATGatewayReport {
		r := core.NATGatewayReport{UID: "n1", Tenant: "t", VNet: "corp", Name: "egress", Up: true, Connections: core.NATConnections{Total: 3}}
		for _, c := range change {
			c(&r)
		}
		return r
	}
	down := func(r *core.NATGatewayReport) { r.Up = false }
	blocked := func(r *core.NATGatewayReport) {
		r.Conditions = []core.NATCondition{{Type: core.NATForwardingBlocked, Message: "blocked", Hint: "open it"}}
	}
	ports := func(r *core.NATGatewayReport) {
		r.Ports = []core.NATPorts{{Address: "host", Protocol: "TCP", Used: 10, Of: 64512}, {Address: "host", Protocol: "UDP", Used: 55000, Of: 64512}}
	}
	for name, c := range map[string]struct {
		all   []core.Stored
		hosts []core.Host
		want  NATGatewayStatus
	}{
		"no subnet":         {all[:1], nil, NATGatewayStatus{State: "Unused", Reason: "no subnet of corp names it"}},
		"no host":           {all, []core.Host{{Name: "h"}}, NATGatewayStatus{State: "Unknown", Reason: "no connected host has told of it yet: hosts make it with the first gateway in its network"}},
		"another's":         {all, []core.Host{{Name: "h", NATGateways: []core.NATGatewayReport{report(func(r *core.NATGatewayReport) { r.Tenant = "o" })}}}, NATGatewayStatus{State: "Unknown", Reason: "no connected host has told of it yet: hosts make it with the first gateway in its network"}},
		"up":                {all, []core.Host{{Name: "h", NATGateways: []core.NATGatewayReport{report(ports)}}}, NATGatewayStatus{State: "Up", Connections: 3, PortsUsed: "85 % (host UDP)"}},
		"up on one":         {all, []core.Host{{Name: "h", NATGateways: []core.NATGatewayReport{report()}}, {Name: "i", NATGateways: []core.NATGatewayReport{report(down, blocked)}}}, NATGatewayStatus{State: "Degraded", Reason: "host i: blocked", Hint: "open it", Connections: 6}},
		"down":              {all, []core.Host{{Name: "h", NATGateways: []core.NATGatewayReport{report(down, blocked)}}}, NATGatewayStatus{State: "Down", Reason: "host h: blocked", Hint: "open it", Connections: 3}},
		"up with a trouble": {all, []core.Host{{Name: "h", NATGateways: []core.NATGatewayReport{report(blocked)}}}, NATGatewayStatus{State: "Degraded", Reason: "host h: blocked", Hint: "open it", Connections: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			views := []View{{Object: nat.Spec, Status: ResourceStatus{UID: "n1"}}}
			natViews(views, c.all, "t", c.hosts)
			got := views[0].Status.(NATGatewayStatus)
			c.want.UID = "n1"
			for _, h := range got.Hosts {
				if h.UID+h.Name+h.VNet+string(h.Tenant) != "" {
					t.Errorf("a host's part repeats whose it is: %+v", h)
				}
			}
			got.Hosts = nil
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNATMetrics(t *testing.T) {
	t.Parallel()
	r := core.NATGatewayReport{
		UID: "n1", Tenant: "t", VNet: "corp", Name: "egress", Up: true, BytesOut: 5, BytesIn: 6, PacketsOut: 7, PacketsIn: 8, DroppedPackets: 9,
		Connections: core.NATConnections{Total: 1, Attempted: 2, Established: 3, Failed: 4, Closed: 5, TimedOut: 6},
		Ports:       []core.NATPorts{{Address: "203.0.113.7", Protocol: "TCP", Used: 60000, Of: 64512}},
		Conditions:  []core.NATCondition{{Type: core.NATPortsRunningOut}},
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(&natCollector{func() []core.Host {
		return []core.Host{{Name: "h", NATGateways: []core.NATGatewayReport{r, r}}, {Name: "i", NATGateways: []core.NATGatewayReport{r}}}
	}})
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		`bytes_total{direction="out",@} 5`, `bytes_total{direction="in",@} 6`, `packets_total{direction="out",@} 7`, `packets_total{direction="in",@} 8`,
		`dropped_packets_total{@} 9`, `connections{@} 1`,
		`connections_total{#,state="attempted",~} 2`, `connections_total{#,state="established",~} 3`, `connections_total{#,state="failed",~} 4`,
		`connections_total{#,state="closed",~} 5`, `connections_total{#,state="timed_out",~} 6`,
		`ports_used{address="203.0.113.7",#,protocol="TCP",~} 60000`, `ports{address="203.0.113.7",#,protocol="TCP",~} 64512`, `datapath_up{@} 1`,
		`condition{#,tenant="t",type="PortsRunningOut",vnet="corp"} 1`, `condition{#,tenant="t",type="ForwardingBlocked",vnet="corp"} 0`,
		`condition{#,tenant="t",type="TrackingRunningOut",vnet="corp"} 0`, `condition{#,tenant="t",type="NotMade",vnet="corp"} 0`,
	} {
		for _, host := range []string{"h", "i"} {
			of, whose := `host="`+host+`",natgateway="egress"`, `tenant="t",vnet="corp"`
			line := "sluice_nat_" + strings.NewReplacer("@", of+","+whose, "#", of, "~", whose).Replace(want) + "\n"
			if !strings.Contains(w.Body.String(), line) {
				t.Errorf("the metrics lack %s", line)
			}
		}
	}
}
