package nettest

import (
	"os"
	"testing"
	"time"
)

// ReadLeases reads dnsmasq's file of leases once it rests: dnsmasq empties it and writes it
// anew at each change, and a reader may come between.
func ReadLeases(t testing.TB, file string) string {
	t.Helper()
	before, same := "", 0
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if string(b) != before {
			before, same = string(b), 0
			continue
		}
		if same++; same == 3 {
			return before
		}
	}
	t.Fatalf("%s does not come to rest", file)
	return ""
}
