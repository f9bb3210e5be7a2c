package policy_test

import (
	"testing"

	"github.com/sluice-gateway/sluice/internal/policy"
	"github.com/sluice-gateway/sluice/internal/policy/policytest"
)

// TestKernelAgrees holds the kernel, with the compiled text in both forms, against the
// evaluator.
func TestKernelAgrees(t *testing.T) {
	t.Parallel()
	for name, bucketsFrom := range map[string]int{"linear": 1 << 20, "bucketed": -1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := policy.NewKernelFabric(t, func(in *policy.VNetInput) { in.BucketsFrom = bucketsFrom })
			policytest.Run(t, k, policytest.Options{Sets: 50, Flows: 48, MaxRules: 10, Least: 5})
		})
	}
}
