package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/sandbox"
	"github.com/sluice-gateway/sluice/internal/sandbox/sandboxtest"
)

// payload is the program that the tests' sandboxes run, built once by TestMain.
var payload string

// managerJob is what a helper process, killed in the middle of it, is to do.
type managerJob struct {
	Instance, Dir, Program string
	Specs                  []sandbox.Spec
	Prepare                bool // prepare and adopt instead of start
}

func TestMain(m *testing.M) {
	if raw := os.Getenv("SLUICE_OCI_MANAGER"); raw != "" {
		runManager(raw)
		os.Exit(0)
	}
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sluice-oci-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if payload, err = sandboxtest.BuildPayload(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if left := zombies(); len(left) > 0 && code == 0 {
		fmt.Fprintln(os.Stderr, "ended, and not reaped:", left)
		return 1
	}
	return code
}

// zombies are the children of this process that it has yet to reap, after some patience: on a
// kernel before 6.15 sandboxes are its children.
func zombies() (left []string) {
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		left = nil
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, path := range stats {
			raw, _ := os.ReadFile(path)
			fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
			if len(fields) > 1 && fields[0] == "Z" && fields[1] == strconv.Itoa(os.Getpid()) {
				left = append(left, string(raw))
			}
		}
		if len(left) == 0 {
			return nil
		}
	}
	return left
}

func TestKernelsThatKeepTheStatus(t *testing.T) {
	t.Parallel()
	for release, want := range map[string]bool{
		"6.1.0-56-amd64": false, "6.14.0": false, "5.15.0-91-generic": false, "6.15.0-rc1": true, "6.18.44": true, "7.0.1": true, "odd": false,
	} {
		if got := keepsStatus(release); got != want {
			t.Errorf("%s: %v; want %v", release, got, want)
		}
	}
}

// runManager starts sandboxes one after another, as a host would, until it is killed.
func runManager(raw string) {
	var job managerJob
	if err := json.Unmarshal([]byte(raw), &job); err != nil {
		panic(err)
	}
	r, err := New(Options{Instance: job.Instance, Dir: job.Dir, Program: job.Program})
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	for _, spec := range job.Specs {
		start := r.Start
		if job.Prepare {
			start = func(ctx context.Context, spec sandbox.Spec) error {
				blank := "blank-" + spec.ID
				if err := r.Prepare(ctx, blank, spec.NetNS); err != nil {
					return err
				}
				return r.Adopt(ctx, blank, spec)
			}
		}
		if err := start(tContext(), spec); err != nil {
			fmt.Fprintln(os.Stderr, "manager:", err)
			os.Exit(1)
		}
	}
	time.Sleep(time.Minute)
}

// installation is a run directory and an instance name of its own.
type installation struct{ opts Options }

func newInstallation(t testing.TB) *installation {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes namespaces and cgroups")
	}
	name := sandboxtest.Unique()
	i := &installation{Options{
		Instance: name, Dir: filepath.Join("/run", "sluice-"+name), Program: payload, Grace: 2 * time.Second,
	}}
	if testing.Verbose() {
		i.opts.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	t.Cleanup(func() {
		i.opts.Logger = nil
		r, err := New(i.opts)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.CleanUp(tContext()); err != nil {
			t.Errorf("CleanUp: %v", err)
		}
		if left := i.leftovers(); len(left) > 0 {
			t.Errorf("left over after CleanUp: %q", left)
		}
	})
	return i
}

func (i *installation) manager(t testing.TB) *Runtime {
	t.Helper()
	r, err := New(i.opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestConformance(t *testing.T) {
	t.Parallel()
	sandboxtest.Run(t, func(t *testing.T) sandboxtest.Harness {
		i := newInstallation(t)
		return sandboxtest.Harness{
			NetNS:   sandboxtest.NetNS(t),
			Manager: func(t *testing.T) sandbox.Runtime { return i.manager(t) },
		}
	})
}
