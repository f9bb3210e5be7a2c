package service

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
)

func TestNewestChanges(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 11, 28, 8, 0, 0, 0, time.UTC)
	lives := map[string][]core.Transition{}
	for _, member := range []string{"m-1", "m-2"} { // each newest first, two of a member at one moment
		for i := range 15 {
			lives[member] = append(lives[member], core.Transition{At: start.Add(-time.Duration(i/2) * time.Second), To: fmt.Sprint(i)})
		}
	}
	var got []string
	for _, c := range newestChanges(lives) {
		got = append(got, c.Member+" "+c.To)
	}
	want := []string{
		"m-1 0", "m-1 1", "m-2 0", "m-2 1", "m-1 2", "m-1 3", "m-2 2", "m-2 3", "m-1 4", "m-1 5",
		"m-2 4", "m-2 5", "m-1 6", "m-1 7", "m-2 6", "m-2 7", "m-1 8", "m-1 9", "m-2 8", "m-2 9",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if none := newestChanges(nil); len(none) > 0 {
		t.Errorf("of nothing: %v", none)
	}
}
