package vm

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	module = "github.com/sluice-gateway/sluice/"
	bin    = "bin" // the programs, in the share
)

// selection is a part of a package's tests. A processor that is emulated gets through the
// few that claim the most about the kernel; with KVM there are more.
type selection struct {
	dir            string // of the package
	emulated, more string // patterns of -test.run
	limit          time.Duration
}

var selections = map[string]selection{
	"networks": {
		"internal/hostnet/linux",
		"^(TestVLAN.*|TestUplinkReachesTheNetwork|TestUplinkOutlivesARestart|TestUplinkRefusals)$/^(a_VLAN.*|a_parent.*|the_network_is_deleted|a_crash.*)$",
		"^(TestConformance|TestMemberReachesWhatItsRulesAllow|TestLeaseCannotBeSpoofed|TestRandomDeltas|TestNATLeavesAs.*|TestNATTimers|TestPeering|TestCleanUpLeavesNothing)$",
		8 * time.Minute,
	},
	"members": {
		"internal/sandbox/oci",
		"^(TestLimitsAreSet|TestKilledFromOutside|TestConfinesItself|TestKernels.*|TestConformance)$/^(out_of_memory|usage|exit_seen|an_adopted_one's_size|clean_up)$",
		".",
		6 * time.Minute,
	},
	"confinement": {
		"internal/gateway/confine",
		"^TestAttempts$/^(TCP_client|listen|bind_TCP|exec|open_|unix_socket|signal_a_parent)$" +
			"|^TestLandlockAlone$/^(TCP_client|open_|write_a_file|list_a_directory|read_the_CA_bundle)$|^TestMissingLayer$",
		"^(TestAttempts|TestMissingLayer)$",
		4 * time.Minute,
	},
	"a query": {"test/e2e", "^TestThroughAnUplink$/^a_VLAN$", "^(TestTimelineNamesEveryPhase|TestByDHCP)$", 6 * time.Minute},
}

// TestOnDebiansKernel runs tests of other packages there: those that this machine's kernel can't
// run, and those whose claim is about the kernel that users have.
func TestOnDebiansKernel(t *testing.T) {
	o := newMachine(t, 0)
	whole := o.Accel == "kvm" || os.Getenv("SLUICE_TEST_VM_WHOLE") != ""
	if !whole {
		t.Logf("the processor is emulated: a smaller selection runs (SLUICE_TEST_VM_WHOLE=1 runs all of it)")
	}
	share := t.TempDir()
	for name, s := range selections {
		t.Run(name, func(t *testing.T) {
			runSelection(t, share, s, s.emulated)
			if whole {
				runSelection(t, share, s, s.more)
			}
		})
	}
}

// runSelection fails the test as well if one of those that were asked for was skipped: a guest has all
// that they need.
func runSelection(t *testing.T, share string, s selection, pattern string) {
	t.Helper()
	buildPrograms(t, share)
	file := filepath.Join(share, strings.ReplaceAll(s.dir, "/", "-")+".test")
	goBuild(t, "test", "-c", "-trimpath", "-o", file, module+s.dir)
	o := newMachine(t, s.limit)
	var out bytes.Buffer
	o.Output = io.MultiWriter(&out, t.Output())
	dir, err := filepath.Abs(filepath.Join("..", "..", s.dir))
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	status, err := Run(t.Context(), o, Job{
		Program: filepath.Join(Shared, filepath.Base(file)), Args: []string{"-test.v", "-test.timeout=" + s.limit.String(), "-test.run=" + pattern},
		Dir: dir, Share: share, Env: []string{"SLUICE_TEST_BIN=" + filepath.Join(Shared, bin)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s in %s", s.dir, time.Since(begun).Round(time.Second))
	text := out.String()
	if status != 0 {
		t.Errorf("exit status %d", status)
	}
	if strings.Contains(text, "--- SKIP") || !strings.Contains(text, "--- PASS") {
		t.Error("tests were skipped, or none was found")
	}
}

var programs sync.Once

// buildPrograms builds what tests run, as make build does: a guest builds nothing.
func buildPrograms(t *testing.T, share string) {
	t.Helper()
	programs.Do(func() {
		goBuild(t, "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(share, bin)+"/",
			module+"cmd/sluice", module+"cmd/sluice-gateway", module+"internal/sandbox/sandboxtest/payload")
	})
}

// goBuild builds without the race detector, which an emulated processor is too slow for.
func goBuild(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
