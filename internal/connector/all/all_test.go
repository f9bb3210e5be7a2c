package all

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/catalog"
)

// What the catalogue promises, a member must be able to do, and the other way round.
func TestRegistryMatchesCatalogue(t *testing.T) {
	var have []catalog.Descriptor
	for _, c := range All() {
		have = append(have, c.Descriptor())
	}
	if diff := cmp.Diff(catalog.All(), have); diff != "" {
		t.Error(diff)
	}
	for _, d := range catalog.All() {
		if c, ok := Lookup(d.Type); !ok || c.Descriptor().Type != d.Type {
			t.Errorf("no connector for %s", d.Type)
		}
	}
	if _, ok := Lookup("nonsense"); ok {
		t.Error("a connector for nonsense")
	}
}
