package oci

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/sandbox/sandboxtest"
)

// BenchmarkStart compares Start with a bare "runc run" of the same bundle, turn by turn.
func BenchmarkStart(b *testing.B) {
	i := newInstallation(b)
	r := i.manager(b)
	s := spec(b, "m-1-7", sandboxtest.Command{Do: "sleep"})
	if err := r.Start(b.Context(), s); err != nil { // builds the root file system
		b.Fatal(err)
	}
	bare := bareBundle(b, r, s.ID)
	if err := r.Stop(b.Context(), s.ID); err != nil {
		b.Fatal(err)
	}
	// A round costs far more than the stop of a benchmark's timer may leave out: count rounds here.
	const rounds = 20
	for b.Loop() {
		var ours, theirs, stops []time.Duration
		for range rounds {
			theirs = append(theirs, timed(b, func() error { return bare("run", "--detach", "--bundle", ".", "bare") }))
			timed(b, func() error { return bare("delete", "--force", "bare") })
			ours = append(ours, timed(b, func() error { return r.Start(b.Context(), s) }))
			stops = append(stops, timed(b, func() error { return r.Stop(b.Context(), s.ID) }))
		}
		report(b, "Start", ours)
		report(b, "runc-run", theirs)
		report(b, "Stop", stops)
	}
}

// bareBundle copies a bundle and returns a function that calls runc on it, without
// anything of this package.
func bareBundle(b *testing.B, r *Runtime, id string) func(args ...string) error {
	b.Helper()
	dir := b.TempDir()
	config, err := os.ReadFile(filepath.Join(string(r.bundle(id)), "config.json"))
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600); err != nil {
		b.Fatal(err)
	}
	boot := filepath.Join(dir, "boot")
	if err := os.WriteFile(boot, sandboxtest.Command{Do: "sleep"}.Boot(), 0o600); err != nil {
		b.Fatal(err)
	}
	return func(args ...string) error {
		in, err := os.Open(boot)
		if err != nil {
			return err
		}
		defer in.Close()
		cmd := exec.Command("runc", append([]string{"--root", filepath.Join(dir, "runc")}, args...)...)
		if args[0] == "run" {
			cmd.Args = slices.Insert(cmd.Args, 4, "--preserve-fds", "1")
			cmd.ExtraFiles = []*os.File{in}
		}
		cmd.Dir = dir
		return cmd.Run()
	}
}

func timed(b *testing.B, f func() error) time.Duration {
	b.Helper()
	began := time.Now()
	if err := f(); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

func report(b *testing.B, name string, all []time.Duration) {
	slices.Sort(all)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(ms(all[len(all)/2]), name+"-p50-ms")
	b.ReportMetric(ms(all[len(all)*95/100]), name+"-p95-ms")
}
