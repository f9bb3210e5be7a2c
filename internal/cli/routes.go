package cli

import "strings"

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
