package policytest_test

import (
	"testing"

	"github.com/sluice-gateway/sluice/internal/policy"
	"github.com/sluice-gateway/sluice/internal/policy/policytest"
)

// TestTextAgrees walks the compiled text, in both forms, for thousands of flows.
func TestTextAgrees(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		bucketsFrom int
		options     policytest.Options
	}{
		"linear":               {1 << 20, policytest.Options{Sets: 200, Flows: 64, Least: 30}},
		"linear, many rules":   {1 << 20, policytest.Options{Sets: 12, Flows: 128, MaxRules: 60}},
		"bucketed":             {-1, policytest.Options{Sets: 200, Flows: 64, Least: 30}},
		"bucketed, many rules": {-1, policytest.Options{Sets: 12, Flows: 128, MaxRules: 60}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := &policytest.Text{T: t, Change: func(in *policy.VNetInput) { in.BucketsFrom = c.bucketsFrom }}
			policytest.Run(t, x, c.options)
			if wanted := c.bucketsFrom < 0; wanted != (x.Bucketed*2 > c.options.Sets) {
				t.Errorf("%d of %d texts have buckets", x.Bucketed, c.options.Sets)
			}
		})
	}
}
