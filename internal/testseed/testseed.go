// Package testseed gives random tests their seed: the same one each time, so that a
// failure is of the change that was made, and another one on demand. It owns the variable
// SLUICE_SEED: a number, or "random". Tests alone may use it.
package testseed

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// Of returns the seed of a test, and prints it.
func Of(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(1)
	switch text := os.Getenv("SLUICE_SEED"); text {
	case "":
	case "random":
		seed = rand.Uint64() >> 1 // no secret
	default:
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("SLUICE_SEED=%q is neither a number nor \"random\"", text)
		}
		seed = n
	}
	t.Logf("SLUICE_SEED=%d repeats this run", seed)
	return seed
}
