// Package vm runs a program on Debian's own kernel, in a small virtual machine.
//
// The machine that runs the tests may have any kernel; those who run Sluice have Debian's. So
// some tests run here as well, as they are: the machine's own file system is the guest's,
// read-only below a layer in memory, so that nft, ip, runc and PostgreSQL are there, and cgroups
// are mounted as systemd mounts them. No network leads out. What boots the guest is the
// program guest, the only one in its initial file system.
package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Job is what a guest runs until it ends, and then powers off.
type Job struct {
	Program string   // a path in the guest
	Args    []string // without the program's name
	Env     []string // with PATH and HOME as on a Debian host, which are there already
	Dir     string   // where it runs; "" is /
	Share   string   // a folder of this machine that the guest has, read-only, as Shared
}

// Shared is where the guest has the job's Share.
const Shared = "/vm"

// Boot is what the guest reads when it starts.
type Boot struct {
	Job     Job
	Modules string // the folder of this machine with the kernel's modules
}

// The names that host and guest call things by.
const (
	RootTag     = "root"            // the 9p share of the machine's file system
	OutputPort  = "output"          // the job writes there
	ResultPort  = "result"          // the guest says there how the job ended
	BootFile    = "/boot.json"      // in the initial file system
	ModuleDir   = "/modules"        // likewise: what it takes to mount the rest, in order of loading
	ResultExit  = "exit "           // begins the result of a job that ended; its status follows
	ResultError = "could not start" // begins that of one that could not be started
)

// needed are the modules that it takes to have a root file system and to be heard. The
// kernel loads what else it needs by itself.
var needed = []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"}

// Options are how a machine is made.
type Options struct {
	Kernel Kernel // required: see FindKernel
	Guest  string // required: the program guest, built statically
	Dir    string // required: an empty folder for what belongs to this machine
	Accel  string // required: "kvm" or "tcg"
	Limit  time.Duration
	Output io.Writer
	params string // more of the kernel's parameters
}

// Run boots a machine, runs the job in it and returns the job's exit status. An error says why
// there is none, with the end of what the kernel wrote.
func Run(ctx context.Context, o Options, job Job) (status int, err error) {
	if err := writeInitial(o, job); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Limit)
	defer cancel()
	result, ran := qemu(ctx, o)
	status, err = outcome(result)
	switch {
	case err == nil:
		return status, nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("no end within %s", o.Limit)
	case ran != nil:
		err = ran
	}
	return 0, fmt.Errorf("virtual machine with kernel %s (%s): %w\nthe console's end:\n%s", o.Kernel.Version, o.Accel, err, consoleEnd(o))
}

func outcome(result string) (int, error) {
	switch {
	case strings.HasPrefix(result, ResultExit) && strings.HasSuffix(result, "\n"):
		return strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(result, ResultExit)))
	case result != "":
		return 0, errors.New(strings.TrimSpace(result))
	}
	return 0, errors.New("it ended before the job did: a panic, or a crash of QEMU")
}

// writeInitial makes the initial file system.
func writeInitial(o Options, job Job) error {
	modules, err := o.Kernel.modules(needed)
	if err != nil {
		return err
	}
	boot, err := json.Marshal(Boot{job, o.Kernel.Modules})
	if err != nil {
		return err
	}
	guest, err := os.ReadFile(o.Guest)
	if err != nil {
		return err
	}
	a := archive{}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/lower", "/layer", "/root", ModuleDir} {
		a.dir(dir)
	}
	a.console()
	a.file("/init", guest)
	a.file(BootFile, boot)
	for i, path := range modules {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		a.file(fmt.Sprintf("%s/%03d-%s", ModuleDir, i, filepath.Base(path)), text)
	}
	return os.WriteFile(initialFile(o), a.end(), 0o600)
}

func initialFile(o Options) string { return filepath.Join(o.Dir, "initrd") }
func consoleFile(o Options) string { return filepath.Join(o.Dir, "console") }
func resultFile(o Options) string  { return filepath.Join(o.Dir, "result") }

// consoleEnd is the last of what the kernel and the guest's first program wrote.
func consoleEnd(o Options) string {
	text, err := os.ReadFile(consoleFile(o))
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-40):], []byte("\n")))
}

// Accel is how to run a machine here, and why not faster.
func Accel() (accel, why string) {
	if forced := os.Getenv("SLUICE_TEST_VM_ACCEL"); forced != "" {
		return forced, "SLUICE_TEST_VM_ACCEL says so"
	}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg", err.Error()
	}
	kvm.Close()
	for _, module := range []string{"kvm_intel", "kvm_amd"} {
		if _, err := os.Stat("/sys/module/" + module); err == nil {
			return "kvm", ""
		}
	}
	return "tcg", "this machine's KVM has no hardware behind it: it is slower than an emulator with a kernel that does not know of it"
}

// BuildGuest builds the program that boots guests into a folder.
func BuildGuest(dir string) (string, error) {
	path := filepath.Join(dir, "guest")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/sluice-gateway/sluice/test/vm/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build of the guest: %w\n%s", err, out)
	}
	return path, nil
}
