package main

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
)

// tb stands where installations and database servers expect a test: it collects
// failures, and cleans up however the run ends.
type tb struct {
	out io.Writer

	mu       sync.Mutex
	cleanups []func()
	failed   bool
}

// run calls f and then what f left to clean up, the last first.
func (t *tb) run(f func()) {
	t.step(f)
	for {
		t.mu.Lock()
		cleanups := t.cleanups
		t.cleanups = nil
		t.mu.Unlock()
		if len(cleanups) == 0 {
			return
		}
		for _, c := range slices.Backward(cleanups) {
			t.step(c)
		}
	}
}

// step gives f a goroutine of its own, which Fatal may end.
func (t *tb) step(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

// Helper implements stack.TB.
func (t *tb) Helper() {}

// Cleanup implements stack.TB.
func (t *tb) Cleanup(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanups = append(t.cleanups, f)
}

// Logf implements stack.TB.
func (t *tb) Logf(format string, args ...any) { fmt.Fprintf(t.out, format+"\n", args...) }

// Errorf implements stack.TB.
func (t *tb) Errorf(format string, args ...any) {
	t.mu.Lock()
	t.failed = true
	t.mu.Unlock()
	t.Logf("error: "+format, args...)
}

// Fatalf implements stack.TB: it ends the goroutine.
func (t *tb) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	runtime.Goexit()
}

// Fatal implements stack.TB.
func (t *tb) Fatal(args ...any) { t.Fatalf("%s", fmt.Sprint(args...)) }

// Failed implements stack.TB.
func (t *tb) Failed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed
}
