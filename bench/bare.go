package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// bareBundle is a member's bundle for a runtime on its own: same root file system,
// confinement and limits, an empty network namespace, and a program that ends at once.
type bareBundle struct {
	dir  string
	name string
	runs int
}

func copyBundle(m member) (_ *bareBundle, err error) {
	b := &bareBundle{}
	if b.dir, err = os.MkdirTemp("", "sluice-bench-runc-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.remove()
		}
	}()
	b.name = filepath.Base(b.dir)
	raw, err := os.ReadFile(filepath.Join(m.bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var config specs.Spec
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, err
	}
	// The installation removes its own while no member runs.
	root := filepath.Join(b.dir, "rootfs")
	if out, err := exec.Command("cp", "-a", config.Root.Path, root).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cp: %w: %s", err, out)
	}
	config.Root.Path = root
	config.Process.Args = []string{config.Process.Args[0], "--version"}
	config.Linux.CgroupsPath = "/" + b.name
	for i, ns := range config.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			config.Linux.Namespaces[i].Path = ""
		}
	}
	if raw, err = json.Marshal(config); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(b.dir, "config.json"), raw, 0o600); err != nil {
		return nil, err
	}
	return b, os.Chmod(b.dir, 0o711) // the bundle's users pass through it
}

// run returns the time from the runtime's start to the first line that the program
// writes. Taking the container away again is not counted.
func (b *bareBundle) run(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	b.runs++
	cmd := exec.CommandContext(ctx, "runc", "--root", filepath.Join(b.dir, "state"), "run", "--bundle", b.dir, fmt.Sprintf("%s-%d", b.name, b.runs))
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	line, readErr := bufio.NewReader(out).ReadString('\n')
	took := time.Since(begun)
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("runc run: %w: %s", err, lastLine(errOut.String()))
	}
	if readErr != nil || !strings.HasPrefix(line, "sluice-gateway") {
		return 0, fmt.Errorf("runc run: the program wrote %q", line)
	}
	return took, nil
}

func (b *bareBundle) remove() {
	os.RemoveAll(b.dir)
	// runc removes the group with the container; an interrupted one leaves it.
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + b.name)
	for _, g := range append(groups, "/sys/fs/cgroup/"+b.name) {
		_ = os.Remove(g)
	}
}
