package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// checkFlags are the words of a check.
type checkFlags struct {
	in       client.Check
	to       string
	protocol string
	nextHop  string
	output   string
}

func (a *app) checkCommand() *cobra.Command {
	var f checkFlags
	cmd := &cobra.Command{
		Use:   "check {-g GATEWAY | --vnet VNET --subnet SUBNET} {--to HOST:PORT | --effective-rules | --effective-routes | --next-hop ADDRESS}",
		Short: "Tell whether a gateway may reach a destination, by which rules, and whether it does; or which rules and routes hold",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, err := f.input()
			if err != nil {
				return err
			}
			return a.check(cmd.Context(), in, f.output)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.in.Gateway, "gateway", "g", "", "gateway")
	fl.StringVar(&f.in.VNet, "vnet", "", "virtual network, in place of a gateway: what holds in one of its subnets")
	fl.StringVar(&f.in.Subnet, "subnet", "", "subnet of --vnet")
	fl.StringVar(&f.in.From, "from", "member", "member, or subnet: any address of the gateway's subnet, rules only")
	fl.StringVar(&f.to, "to", "", "HOST:PORT; HOST alone for icmp, esp and ah")
	fl.StringVar(&f.protocol, "protocol", "tcp", "tcp; with --dry also udp, icmp, esp, ah")
	fl.BoolVar(&f.in.Dry, "dry", false, "the rules' verdict alone, no probe")
	fl.DurationVar(&f.in.Timeout, "timeout", 5*time.Second, "bound on the probe")
	fl.BoolVar(&f.in.EffectiveRules, "effective-rules", false, "the security rules that are asked, in their order, and no check")
	fl.BoolVar(&f.in.EffectiveRoutes, "effective-routes", false, "the routes of the subnet, and no check")
	fl.StringVar(&f.nextHop, "next-hop", "", "where packets to an address, or a name of a private zone, go, and no check")
	fl.StringVarP(&f.output, "output", "o", "table", "table, json")
	_ = cmd.RegisterFlagCompletionFunc("gateway", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.names(cmd, "gateways"), cobra.ShellCompDirectiveNoFileComp
	})
	_ = cmd.RegisterFlagCompletionFunc("vnet", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.names(cmd, "virtualnetworks"), cobra.ShellCompDirectiveNoFileComp
	})
	return cmd
}

func (f checkFlags) input() (client.Check, error) {
	in := f.in
	in.Protocol = protocolOf(f.protocol)
	if f.output != "table" && f.output != "json" {
		return in, errs.New(errs.Invalid, "-o %s is not one of table, json", f.output)
	}
	if in.Gateway != "" && (in.VNet != "" || in.Subnet != "") {
		return in, errs.New(errs.Invalid, "a check is about a gateway or about a subnet, not both").WithHint("-g GATEWAY, or --vnet VNET --subnet SUBNET")
	}
	asks := 0
	for _, asked := range []bool{f.to != "", in.EffectiveRules, in.EffectiveRoutes, f.nextHop != ""} {
		if asked {
			asks++
		}
	}
	if asks != 1 {
		return in, errs.New(errs.Invalid, "a check asks one thing, not %d", asks).
			WithHint("--to HOST:PORT, --effective-rules, --effective-routes or --next-hop ADDRESS")
	}
	if f.nextHop != "" {
		in.Host, in.NextHop = f.nextHop, true
		return in, nil
	}
	if in.EffectiveRules || in.EffectiveRoutes {
		return in, nil
	}
	if !in.Protocol.HasPorts() && !strings.Contains(f.to, ":") {
		in.Host = f.to
		return in, nil
	}
	var err error
	in.Host, in.Port, err = splitHostPort(f.to)
	return in, err
}

func (a *app) check(ctx context.Context, in client.Check, output string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	var raw json.RawMessage
	if err := c.Post(ctx, "/v1/check", in, &raw); err != nil {
		return err
	}
	var out client.CheckResult
	if err := json.Unmarshal(raw, &out); err != nil {
		return err
	}
	switch {
	case output == "json":
		err = a.printJSON([]json.RawMessage{raw}, true)
	case in.EffectiveRules:
		err = a.printRules(out.Rules)
	case in.EffectiveRoutes:
		err = a.printRoutes(out.Routes)
	case in.NextHop:
		a.printNextHop(out)
	default:
		a.printVerdict(in, out)
	}
	if err != nil || in.EffectiveRules || in.EffectiveRoutes || in.NextHop {
		return err
	}
	to := endOf(in.Host, in.Port)
	if out.Destination == "" && out.Probe == nil {
		return errs.New(errs.Unavailable, "what the rules say of %s is not known: it has no address without asking a server", to).
			WithHint("without --dry a member resolves it; or name the address")
	}
	if !out.Allowed || out.Probe != nil && !out.Probe.Connected {
		return errs.New(errs.Unavailable, "%s can't be reached from gateway %s", to, in.Gateway)
	}
	return nil
}

func (a *app) printVerdict(in client.Check, out client.CheckResult) {
	verdict := "denied"
	switch {
	case out.Allowed:
		verdict = "allowed"
	case out.Destination == "":
		verdict = "unknown"
	}
	fmt.Fprintf(a.Out, "rules: %s  %s → %s\n", verdict, out.Source, endOf(orText(out.Destination, in.Host), in.Port))
	for _, r := range out.Reasons {
		fmt.Fprintf(a.Out, "  %s\n", r)
	}
	a.printEndpoint(out.Endpoint)
	if p := out.Probe; p != nil {
		if p.Connected {
			fmt.Fprintf(a.Out, "probe: connected in %s\n", milliseconds(p.Connect))
		} else {
			fmt.Fprintf(a.Out, "probe: %s\n", p.Error)
		}
	}
	if out.Agree != nil {
		fmt.Fprintln(a.Out, map[bool]string{true: "rules and probe agree", false: "rules and probe don't agree"}[*out.Agree])
	}
}

// endOf writes one end of a flow; protocols without ports have port 0.
func endOf(host string, port uint16) string {
	if port == 0 {
		return host
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// printEndpoint says which private endpoint answers, if one does.
func (a *app) printEndpoint(e *client.Endpoint) {
	if e != nil {
		fmt.Fprintf(a.Out, "  private endpoint %s of VirtualNetwork/%s answers on TCP port %d, for %s\n", e.Name, e.VNet, e.Port, e.Target)
	}
}

func (a *app) printNextHop(out client.CheckResult) {
	h := out.NextHop
	if h == nil { // a service from before there were next hops
		return
	}
	fmt.Fprintf(a.Out, "next hop: %s  %s → %s\n", strings.TrimSpace(string(h.NextHop)+" "+h.Through), out.Source, out.Destination)
	for _, line := range slices.Compact([]string{h.Route, h.Reason}) { // a route to None is its own reason
		if line != "" {
			fmt.Fprintf(a.Out, "  %s\n", line)
		}
	}
	a.printEndpoint(out.Endpoint)
}

// printRules prints rules in the order in which they are asked.
func (a *app) printRules(rules []client.Rule) error {
	rows := make([][]string, len(rules))
	for i, r := range rules {
		rows[i] = []string{
			string(r.Direction), string(r.Level), r.NSG, strconv.Itoa(r.Priority), r.Name, string(r.Access), string(r.Protocol),
			ended(r.Source, r.SourcePorts), ended(r.Destination, r.DestinationPorts),
		}
	}
	return PrintTable(a.Out, []string{"DIRECTION", "LEVEL", "NSG", "PRIORITY", "RULE", "ACCESS", "PROTOCOL", "SOURCE", "DESTINATION"}, rows)
}

// ended writes one side of a rule: "10.20.1.0/24 port 443,5432".
func ended(addresses, ports []string) string {
	out := strings.Join(addresses, ",")
	if len(ports) != 1 || ports[0] != "*" {
		out += " port " + strings.Join(ports, ",")
	}
	return out
}

// printRoutes prints the routes that hold for a subnet.
func (a *app) printRoutes(list []client.Route) error {
	rows := make([][]string, len(list))
	for i, r := range list {
		state := "active"
		if r.Overridden {
			state = "overridden"
		}
		rows[i] = []string{r.Prefix.String(), string(r.NextHop), r.Through, orText(r.Table, "system"), r.Name, state, r.Reason}
	}
	return PrintTable(a.Out, []string{"PREFIX", "NEXT HOP", "THROUGH", "TABLE", "NAME", "STATE", "REASON"}, rows)
}
