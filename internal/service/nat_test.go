package service

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

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
			got := natStatus(nat, ResourceStatus{}, c.all, c.hosts)
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
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			got[seriesName(f, m)] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for series, want := range map[string]float64{
		"sluice_nat_bytes_total out": 5, "sluice_nat_bytes_total in": 6, "sluice_nat_packets_total out": 7, "sluice_nat_packets_total in": 8,
		"sluice_nat_dropped_packets_total": 9, "sluice_nat_connections": 1,
		"sluice_nat_connections_total attempted": 2, "sluice_nat_connections_total established": 3, "sluice_nat_connections_total failed": 4,
		"sluice_nat_connections_total closed": 5, "sluice_nat_connections_total timed_out": 6,
		"sluice_nat_ports_used 203.0.113.7 TCP": 60000, "sluice_nat_ports 203.0.113.7 TCP": 64512, "sluice_nat_datapath_up": 1,
		"sluice_nat_condition PortsRunningOut": 1, "sluice_nat_condition TrackingRunningOut": 0, "sluice_nat_condition ForwardingBlocked": 0, "sluice_nat_condition NotMade": 0,
	} {
		if v, ok := got[series]; !ok || v != want {
			t.Errorf("%s is %v, %v; want %v", series, v, ok, want)
		}
	}
}

// seriesName is a family and the labels of one series that are not the NAT gateway's own.
func seriesName(f *dto.MetricFamily, m *dto.Metric) string {
	out := []string{f.GetName()}
	for _, l := range m.Label {
		switch l.GetName() {
		case "tenant", "vnet", "natgateway", "host":
		default:
			out = append(out, l.GetValue())
		}
	}
	return strings.Join(out, " ")
}
