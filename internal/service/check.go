package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/catalog"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/placement"
	"github.com/sluice-gateway/sluice/internal/policy"
	"github.com/sluice-gateway/sluice/internal/resolver"
)

// probeTimeout bounds a probe whose caller named no time.
const probeTimeout = 5 * time.Second

// maxProbeTimeout bounds what a caller may name.
const maxProbeTimeout = time.Minute

// Check implements Frontend: the verdict of the rules and, unless dry, a real probe.
func (s *Service) Check(ctx context.Context, in core.Check) (core.CheckResult, error) {
	p, err := caller(ctx)
	if err != nil {
		return core.CheckResult{}, err
	}
	if err := checkInput(&in); err != nil {
		return core.CheckResult{}, err
	}
	if in.Effective() {
		return s.effective(ctx, p.Tenant, in)
	}
	ref, err := s.gatewayRef(ctx, p.Tenant, in.Gateway)
	if err != nil {
		return core.CheckResult{}, err
	}
	vnet, gw, err := s.networkOf(ctx, p.Tenant, in.Gateway)
	if err != nil {
		return core.CheckResult{}, err
	}
	var out core.CheckResult
	from := s.anyMember(ref.UID, p.Tenant, vnet, gw.Subnet)
	if !in.Dry {
		grant, err := s.opts.Fleet.Acquire(ctx, ref)
		if err != nil {
			return out, err
		}
		defer grant.Release()
		from = grant.Member
		if out.Probe, err = s.probe(ctx, grant.Member, in); err != nil {
			return out, err
		}
	}
	out.Source = from.Address.String()
	to, ok := destination(vnet, in.Host, out.Probe)
	if !ok {
		out.Reasons = append(out.Reasons, unresolved(vnet, in.Host))
		return out, nil
	}
	placement.AddMember(&vnet, gw, from.Address) // it need not run yet
	flow := policy.Flow{Source: from.Address, Destination: to, Protocol: in.Protocol, DestinationPort: in.Port}
	rules := s.evaluator(ctx, p.Tenant, vnet, from.Host)
	verdict := rules.Evaluate(flow)
	out.Destination, out.Allowed = to.String(), verdict.Allowed
	for _, d := range verdict.Decisions {
		out.Reasons = append(out.Reasons, d.String())
	}
	out.Reasons = append(out.Reasons, routeReason(rules, flow, verdict))
	out.Endpoint = s.endpointAt(ctx, p.Tenant, vnet, to, in.Port)
	if out.Probe != nil {
		// A refusal by the destination is an answer: the rules let the packets pass. One
		// by the member's own loopback is not: nothing has left it.
		passed := out.Probe.Connected || strings.Contains(out.Probe.Error, "refused") && !to.IsLoopback()
		agree := passed == verdict.Allowed
		out.Agree = &agree
	}
	return out, nil
}

func checkInput(in *core.Check) error {
	if in.Protocol == "" {
		in.Protocol = core.ProtocolTCP
	}
	if in.Timeout <= 0 {
		in.Timeout = probeTimeout
	}
	switch {
	case in.Gateway == "" && (!in.Effective() || in.VNet == "" || in.Subnet == ""):
		return errs.New(errs.Invalid, "the check names no gateway").WithHint("a gateway; or, for what holds in a subnet, a virtual network and a subnet")
	case in.NextHop && in.Host == "":
		return errs.New(errs.Invalid, "the check names no address to find the next hop of")
	case in.Effective():
		return nil
	case in.VNet != "" || in.Subnet != "":
		return errs.New(errs.Invalid, "a connection is checked from a gateway, not from a subnet").WithHint("--gateway, with --from subnet for any address of its subnet")
	case in.Host == "" || in.Port == 0 && in.Protocol.HasPorts():
		return errs.New(errs.Invalid, "the check names no destination").WithHint("--to HOST:PORT")
	case !slices.Contains([]core.Protocol{core.ProtocolTCP, core.ProtocolUDP, core.ProtocolICMP, core.ProtocolESP, core.ProtocolAH}, in.Protocol):
		return errs.New(errs.Invalid, "%q is not a protocol that rules know", in.Protocol).WithHint("tcp, udp, icmp, esp or ah")
	case in.Timeout > maxProbeTimeout:
		return errs.New(errs.Invalid, "a probe takes at most %s, not %s", maxProbeTimeout, in.Timeout)
	case in.Protocol != core.ProtocolTCP && !in.Dry && in.From != "subnet":
		return errs.New(errs.Invalid, "only TCP can be probed, not %s", in.Protocol).WithHint("--dry gives the rules' verdict alone")
	case in.From != "" && in.From != "member" && in.From != "subnet":
		return errs.New(errs.Invalid, "a check goes from \"member\" or \"subnet\", not %q", in.From)
	}
	if in.From == "subnet" {
		in.Dry = true // nothing is injected for an address that no member holds
	}
	return nil
}

func (s *Service) probe(ctx context.Context, m core.Member, in core.Check) (*core.Probe, error) {
	resp, err := s.post(ctx, m, memberapi.PathProbe, memberapi.ProbeRequest{Host: in.Host, Port: in.Port, TimeoutMS: in.Timeout.Milliseconds()})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var out core.Probe
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return nil, errs.New(errs.Unavailable, "member %s answered incompletely: %w", m.ID, err).WithStep(errs.StepTunnel)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return &out, nil
}

// networkOf resolves a gateway's virtual network as its host sees it.
func (s *Service) networkOf(ctx context.Context, t core.TenantID, gateway string) (core.GoalVNet, *core.Gateway, error) {
	sn, err := s.snap(ctx, t)
	if err != nil {
		return core.GoalVNet{}, nil, err
	}
	r, err := sn.find(core.KindGateway, gateway)
	if err != nil {
		return core.GoalVNet{}, nil, err
	}
	gw := r.Spec.(*core.Gateway)
	v, err := sn.find(core.KindVirtualNetwork, gw.VNet)
	if err != nil {
		return core.GoalVNet{}, nil, err
	}
	return placement.VNet(v, v.Spec.(*core.VirtualNetwork), sn.all, s.opts.Fleet.Members(t)), gw, nil
}

// anyMember is a member of the gateway or, if none runs, the address of one that could,
// on no host yet.
func (s *Service) anyMember(gatewayUID string, t core.TenantID, v core.GoalVNet, subnet string) core.Member {
	for _, m := range s.opts.Fleet.Members(t) {
		if m.GatewayUID == gatewayUID && m.Address.IsValid() {
			return m
		}
	}
	for _, sub := range v.Subnets {
		if sub.Name == subnet {
			return core.Member{Address: placement.FirstAddress(sub.Prefix)}
		}
	}
	return core.Member{}
}

// destination finds the address that a name stands for in the network.
func destination(v core.GoalVNet, host string, probe *core.Probe) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(host); err == nil {
		return a, true
	}
	if probe != nil && probe.Address != "" {
		if a, err := netip.ParseAddr(probe.Address); err == nil {
			return a, true
		}
	}
	return resolver.Lookup(v.Zones, host)
}

// unresolved says why a name's address is not known here.
func unresolved(v core.GoalVNet, host string) string {
	if zone := resolver.Decides(v.Zones, host); zone != "" {
		return fmt.Sprintf("private zone %s has no IPv4 address for %s", zone, host)
	}
	return fmt.Sprintf("%s is in no private zone linked to VirtualNetwork/%s", host, v.Name)
}

func resolvers(v core.GoalVNet) []netip.Addr {
	var out []netip.Addr
	for _, s := range v.Subnets {
		out = append(out, placement.Resolvers(s.Prefix)...)
	}
	return out
}

// explain adds what the rules say to an error about a data source that could not be
// reached, so that the query's own error names the rule.
func (s *Service) explain(ctx context.Context, t core.TenantID, m core.Member, src memberapi.Source, err error) error {
	var told *denial
	if errors.As(err, &told) {
		return err
	}
	e := errs.As(err)
	cut := e.Class == errs.Unavailable && (e.Step == errs.StepTLS || e.Step == errs.StepSignIn)
	if e.Step != errs.StepConnect && e.Step != errs.StepResolve && !cut {
		return err
	}
	vnet, gw, netErr := s.networkOf(ctx, t, m.Gateway)
	if netErr != nil {
		return err
	}
	placement.AddMember(&vnet, gw, m.Address)
	if e.Step == errs.StepResolve {
		return explainResolve(vnet, gw, m, src, e)
	}
	port := sourcePort(src)
	to, ok := destination(vnet, src.Parameters["host"], nil)
	if !ok || port == 0 {
		return err
	}
	flow := policy.Flow{Source: m.Address, Destination: to, Protocol: core.ProtocolTCP, DestinationPort: port}
	rules := s.evaluator(ctx, t, vnet, m.Host)
	verdict := rules.Evaluate(flow)
	out := *e
	if verdict.Allowed && s.opts.Fleet.Behind(ctx, m.Host) {
		out.Message += fmt.Sprintf(": the rules allow it, but host %s has not acted on the last change yet", m.Host)
		out.Hint = "try again in a moment; \"sluice apply\" waits for hosts unless told not to, \"sluice get hosts\" shows their problems"
		return &out
	}
	if denial, denied := verdict.Denial(); denied {
		out.Message += ": " + denial.String()
		out.Hint = checkHint(m.Gateway, src.Parameters["host"], port)
	} else if !verdict.HasRoute() {
		out.Message += ": " + noRoute(flow, verdict)
		out.Hint = routeHint(rules, flow)
	} else {
		explainHolder(&out, vnet, to)
	}
	return &out
}

// explainStep does the same for the step at which a test failed. Every member of a
// gateway meets the same rules, so any address of the gateway's does.
func (s *Service) explainStep(ctx context.Context, source string, step *memberapi.TestStep) {
	p, err := caller(ctx)
	if err != nil || step.SQLState != "" || step.Class == errs.Source { // the source itself has answered
		return
	}
	tgt, err := s.target(ctx, p.Tenant, source)
	if err != nil {
		return
	}
	vnet, gw, err := s.networkOf(ctx, p.Tenant, tgt.gateway.Name)
	if err != nil {
		return
	}
	m := s.anyMember(tgt.gateway.UID, p.Tenant, vnet, gw.Subnet)
	m.Gateway = tgt.gateway.Name
	e := errs.As(s.explain(ctx, p.Tenant, m, tgt.source, &errs.Error{
		Class: errs.Unavailable, Message: step.Error, Hint: step.Hint, Step: step.Name,
	}))
	step.Error, step.Hint = e.Message, e.Hint
}

// explainHolder says who holds an address that the rules let the member reach.
func explainHolder(e *errs.Error, v core.GoalVNet, to netip.Addr) {
	for _, ep := range v.Endpoints {
		if ep.Address == to {
			e.Message += fmt.Sprintf(" (private endpoint %s stands for %s)", ep.Name, ep.Target)
			e.Hint = fmt.Sprintf("check that a server answers on %s, as the host reaches it", ep.Target)
			return
		}
	}
	for _, sub := range v.Subnets {
		if sub.Prefix.Contains(to) {
			e.Message += fmt.Sprintf(": no private endpoint holds %s in subnet %s", to, sub.Name)
			e.Hint = "\"sluice get privateendpoints\" lists those that there are"
			return
		}
	}
}

func sourcePort(src memberapi.Source) uint16 {
	if p, err := strconv.ParseUint(src.Parameters["port"], 10, 16); err == nil {
		return uint16(p)
	}
	d, _ := catalog.Lookup(src.Type)
	return d.DefaultPort
}
