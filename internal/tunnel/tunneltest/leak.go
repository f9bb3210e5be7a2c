package tunneltest

import (
	"runtime"
	"strings"
	"testing"
	"time"
)

// NoLeak fails a test that leaves goroutines of this module behind. It must be called
// before anything that registers a cleanup, in a test that is not parallel.
func NoLeak(t testing.TB) {
	t.Helper()
	before := len(ours())
	t.Cleanup(func() {
		deadline := time.Now().Add(30 * time.Second)
		for len(ours()) > before {
			if time.Now().After(deadline) {
				t.Errorf("%d goroutines before, now:\n%s", before, strings.Join(ours(), "\n\n"))
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

// ours lists the goroutines that run code of this module or serve its connections, the
// tests' own functions aside.
func ours() []string {
	buf := make([]byte, 8<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var found []string
	for g := range strings.SplitSeq(string(buf), "\n\n") {
		if strings.Contains(g, "testing.tRunner") || strings.Contains(g, "testing.(*T).Run") {
			continue
		}
		if strings.Contains(g, "/sluice/internal/") || strings.Contains(g, "net/http.") {
			found = append(found, g)
		}
	}
	return found
}
