package sqlite

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-gateway/sluice/internal/store"
)

// TestHistoryIsFoundByIndex: what a page asks for does not grow with the history of others.
func TestHistoryIsFoundByIndex(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), Options{Path: filepath.Join(t.TempDir(), "s.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, tt := range []struct {
		name   string
		filter store.TransitionFilter
		want   string
	}{
		{"a gateway's members", store.TransitionFilter{Tenant: "t", Of: "Member", GatewayUID: "g"}, "USING INDEX transitions_gateway (gateway_uid=? AND of=?)"},
		{"a gateway's members, of every tenant", store.TransitionFilter{Of: "Member", GatewayUID: "g"}, "USING INDEX transitions_gateway (gateway_uid=? AND of=?)"},
		{"one member", store.TransitionFilter{Tenant: "t", Of: "Member", UID: "m"}, "USING INDEX transitions_object (of=? AND uid=?)"},
		{"all gateways", store.TransitionFilter{Tenant: "t", Of: "Gateway"}, "USING INDEX transitions_object (of=?)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var plan []string
			err := s.Read(t.Context(), func(st store.Tx) error {
				query, args := transitionQuery(tt.filter)
				steps, err := list(st.(*tx), "explain", "EXPLAIN QUERY PLAN "+query, append(args, 20), func(row scanner) (text string, err error) {
					var id, parent, unused int
					err = row.Scan(&id, &parent, &unused, &text)
					return text, err
				})
				plan = steps
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if text := strings.Join(plan, "\n"); !strings.Contains(text, tt.want) {
				t.Errorf("the plan lacks %q:\n%s", tt.want, text)
			}
		})
	}
}
