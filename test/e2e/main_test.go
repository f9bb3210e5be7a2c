// Package e2e tests Sluice from end to end: the real programs, kernel, OCI runtime and
// PostgreSQL, with nothing in the place of anything.
//
// Each test runs an installation of its own, or reads from the one that the package
// shares; helpers_test.go makes both. Whatever an installation leaves on the machine
// fails the test that made it.
package e2e

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/sluice-gateway/sluice/test/e2e/skew"
	"github.com/sluice-gateway/sluice/test/e2e/stack"
)

// The process's first thread, which /proc/self stands for, belongs to the main goroutine: no
// other one can take it along into a namespace and end there, since a first thread never ends.
func init() { runtime.LockOSThread() } //nolint:gochecknoinits // main runs too late

func TestMain(m *testing.M) {
	skew.Main()
	leaveToTurns()
	code := m.Run()
	if !whole.end() && code == 0 {
		code = 1
	}
	stack.RemoveBinaries()
	os.Exit(code)
}

// whole stands for the whole package where a test is expected: what it owns, the shared
// installation and the shared database server, lasts until the last test has ended.
var whole packageTB

type packageTB struct {
	mu       sync.Mutex
	cleanups []func()
	failed   bool
}

// end cleans up, the last first, and tells whether everything went well.
func (p *packageTB) end() bool {
	for {
		p.mu.Lock()
		cleanups := p.cleanups
		p.cleanups = nil
		p.mu.Unlock()
		if len(cleanups) == 0 {
			return !p.Failed()
		}
		for _, c := range slices.Backward(cleanups) {
			apart(c)
		}
	}
}

// apart calls f on a goroutine of its own, which Fatal may end.
func apart(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

func (p *packageTB) Helper() {}

func (p *packageTB) Cleanup(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cleanups = append(p.cleanups, f)
}

func (p *packageTB) Logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "shared installation: "+format+"\n", args...)
}

func (p *packageTB) Errorf(format string, args ...any) {
	p.mu.Lock()
	p.failed = true
	p.mu.Unlock()
	p.Logf(format, args...)
}

func (p *packageTB) Fatalf(format string, args ...any) {
	p.Errorf(format, args...)
	runtime.Goexit()
}

func (p *packageTB) Fatal(args ...any) { p.Fatalf("%s", fmt.Sprint(args...)) }

func (p *packageTB) Failed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}
