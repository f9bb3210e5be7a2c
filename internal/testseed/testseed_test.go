package testseed

import "testing"

func TestOf(t *testing.T) {
	for text, want := range map[string]uint64{"": 1, "7": 7} {
		t.Setenv("SLUICE_SEED", text)
		if got := Of(t); got != want {
			t.Errorf("SLUICE_SEED=%q gives %d, want %d", text, got, want)
		}
	}
	t.Setenv("SLUICE_SEED", "random")
	if a, b := Of(t), Of(t); a == b {
		t.Errorf("a random seed is %d twice", a)
	}
}
