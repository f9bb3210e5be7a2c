package cli

import (
	"context"
	"strings"

	"github.com/sluice-gateway/sluice/client"
)

// effectiveRoutes prints the routes that hold for a gateway's subnet.
func (a *app) effectiveRoutes(ctx context.Context, gateway string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	var out client.CheckResult
	if err := c.Post(ctx, "/v1/check", client.Check{Gateway: gateway, EffectiveRoutes: true}, &out); err != nil {
		return err
	}
	rows := make([][]string, len(out.Routes))
	for i, r := range out.Routes {
		state := "active"
		if r.Overridden {
			state = "overridden"
		}
		rows[i] = []string{r.Prefix.String(), string(r.NextHop), r.Through, orText(r.Table, "system"), r.Name, state, r.Reason}
	}
	return PrintTable(a.Out, []string{"PREFIX", "NEXT HOP", "THROUGH", "TABLE", "NAME", "STATE", "REASON"}, rows)
}

// routes shows a table's routes: "10.9.0.0/16 None, 0.0.0.0/0 VirtualAppliance 10.20.0.9".
func routes(o map[string]any) string {
	list, _ := o["routes"].([]any)
	var out []string
	for _, r := range list {
		if m, ok := r.(map[string]any); ok {
			out = append(out, strings.TrimSpace(text(m["prefix"])+" "+text(m["nextHop"])+" "+text(m["address"])))
		}
	}
	return strings.Join(out, ", ")
}

// peerings shows a network's peerings and whether they are in effect: "hub Connected".
func peerings(o map[string]any) string {
	list, _ := lookup(o, "status.peerings").([]any)
	var out []string
	for _, p := range list {
		if m, ok := p.(map[string]any); ok {
			out = append(out, text(m["remote"])+" "+text(m["state"]))
		}
	}
	return strings.Join(out, ", ")
}
