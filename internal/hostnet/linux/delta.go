package linux

import (
	"fmt"
	"strings"
)

// delta gives the commands that turn one ruleset into another, if they differ in the
// elements of their sets alone. A member's coming changes no more than that, and
// replacing the table for it would hold up whatever else happens in the namespace
// until the kernel freed the old one.
func delta(from, to string) (commands string, ok bool) {
	a, b := parseSets(from), parseSets(to)
	if a.rest != b.rest || from == "" {
		return "", false
	}
	var out strings.Builder
	for _, key := range sortedKeys(b.sets) {
		if gone := beyond(a.sets[key], b.sets[key]); len(gone) > 0 {
			fmt.Fprintf(&out, "delete element %s { %s }\n", key, strings.Join(gone, ", "))
		}
		if added := beyond(b.sets[key], a.sets[key]); len(added) > 0 {
			fmt.Fprintf(&out, "add element %s { %s }\n", key, strings.Join(added, ", "))
		}
	}
	return out.String(), out.Len() > 0
}

// setText is a ruleset's text with its sets' elements taken out.
type setText struct {
	rest string
	sets map[string][]string // "inet sluice members" → elements
}

// parseSets reads sets whose elements stand one per line between "elements = {" and "}".
// Elements in any other form stay in rest, where a difference makes delta decline.
func parseSets(text string) setText {
	out := setText{sets: map[string][]string{}}
	var rest strings.Builder
	table, set, inside := "", "", false
	for line := range strings.Lines(text) {
		word := strings.TrimSpace(line)
		switch {
		case inside && word == "}":
			inside = false
			continue
		case inside:
			out.sets[set] = append(out.sets[set], strings.TrimSuffix(word, ","))
			continue
		case word == "elements = {" && set != "":
			inside = true
			continue
		case strings.HasPrefix(word, "table ") && strings.HasSuffix(word, "{"):
			table = strings.TrimSuffix(strings.TrimPrefix(word, "table "), " {")
		case strings.HasPrefix(word, "set ") && strings.HasSuffix(word, "{"):
			set = table + " " + strings.Fields(word)[1]
			out.sets[set] = nil
		case word == "}":
			set = ""
		}
		rest.WriteString(line)
	}
	out.rest = rest.String()
	return out
}
