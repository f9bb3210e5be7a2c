package identity

import (
	"testing"
	"time"
)

// TestBelievable: a clock is wrong when the process begins, or is set later, or both.
func TestBelievable(t *testing.T) {
	t.Parallel()
	right := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	began := right.AddDate(-1, 0, 0)
	for _, tt := range []struct {
		name               string
		steady, wall, want time.Time
	}{
		{"both are right", right, right, right},
		{"set ahead since", right, right.AddDate(0, 0, 40), right},
		{"set back since", right, right.Add(-time.Hour), right.Add(-time.Hour)},
		{"ahead at first, put right since", right.AddDate(0, 0, 40), right, right},
		{"of 1970 at first, put right since", time.Unix(100, 0), right, right},
		{"right at first, of 1970 since", right, time.Unix(100, 0), right},
	} {
		if got := believable(tt.steady, tt.wall, began); !got.Equal(tt.want) {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
