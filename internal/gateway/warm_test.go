package gateway

import "testing"

func TestWarm(t *testing.T) {
	t.Parallel()
	for range 2 { // it is of use once, and does no harm again
		if err := Warm(); err != nil {
			t.Fatal(err)
		}
	}
}
