package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// fieldsOf lists the fields of a struct type as JSON names them.
func fieldsOf(typ reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(typ) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.IsExported() && !f.Anonymous && name != "" && name != "-" {
			out[name] = f.Type
		}
	}
	return out
}

// unknownField words why a key is refused.
func unknownField(key string, known map[string]reflect.Type) string {
	names := make([]string, 0, len(known))
	for n := range known {
		names = append(names, n)
	}
	slices.Sort(names)
	if near := Nearest(key, names); near != "" {
		return fmt.Sprintf("unknown field %q: did you mean %q?", key, near)
	}
	return fmt.Sprintf("unknown field %q: the fields here are %s", key, strings.Join(names, ", "))
}

// unknownKind words why a kind is refused.
func unknownKind(kind string) string {
	var names []string
	for _, k := range core.Kinds() {
		names = append(names, string(k))
	}
	all := strings.Join(names, ", ")
	if near := Nearest(kind, names); near != "" {
		return fmt.Sprintf("unknown kind %q: did you mean %s? The kinds are %s", kind, near, all)
	}
	return fmt.Sprintf("unknown kind %q: the kinds are %s", kind, all)
}

// Nearest returns the name that word is most likely a slip of, or "". Case does not
// count; one edit in three letters is still likely.
func Nearest(word string, names []string) string {
	best, least := "", len(word)/3+2
	for _, n := range names {
		if d := distance(strings.ToLower(word), strings.ToLower(n)); d < least {
			best, least = n, d
		}
	}
	return best
}

// distance counts the bytes to insert, delete or replace to get from a to b.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64 // no field is so long
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
