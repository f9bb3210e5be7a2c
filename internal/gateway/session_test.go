package gateway

import (
	"context"
	"slices"
	"testing"

	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// A connector is told whose request it serves, whatever the request.
func TestConnectorIsToldTheUser(t *testing.T) {
	t.Parallel()
	fake := selects(func(context.Context) *reader { return batches(1, 1, nil) })
	url, _ := serve(t, fake)
	req := query("select")
	meta := memberapi.MetadataRequest{Source: req.Source, Kind: memberapi.MetaTableTypes}
	for _, user := range []string{"ada", ""} {
		req.Session, meta.Session = user, user
		for path, body := range map[string]any{memberapi.PathQuery: req, memberapi.PathPrepare: req, memberapi.PathMetadata: meta} {
			post(t, t.Context(), url+path, body).Body.Close()
		}
	}
	fake.mu.Lock()
	defer fake.mu.Unlock()
	if want := []string{"ada", "ada", "ada", "", "", ""}; !slices.Equal(fake.users, want) {
		t.Errorf("told %q, want %q", fake.users, want)
	}
}
