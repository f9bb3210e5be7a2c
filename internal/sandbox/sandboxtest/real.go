package sandboxtest

import (
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Facts is what the command "report" prints: the sandbox as seen from inside.
type Facts struct {
	UID, GID, PID, CPUs int
	Groups              []int
	Args, Env           []string
	Status              map[string]string
	Mounts              []string
	Root                []string
	Interfaces          []string
	Hostname, UIDMap    string
	Limits              map[string]uint64
	FDs                 []string
	Tries               map[string]string
}

// BuildPayload builds the program that does what its Command says, statically, into dir. One
// that was built before, in the folder SLUICE_TEST_BIN, is taken in its place.
func BuildPayload(dir string) (string, error) {
	path := filepath.Join(dir, "payload")
	if built := os.Getenv("SLUICE_TEST_BIN"); built != "" {
		return filepath.Join(built, "payload"), nil
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", path,
		"github.com/sluice-gateway/sluice/internal/sandbox/sandboxtest/payload")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the payload: %w\n%s", err, out)
	}
	return path, nil
}

// Unique returns a short name that nothing else on the machine has.
func Unique() string { return "t" + strings.ToLower(rand.Text()[:10]) }

// NetNS makes a network namespace for a test and returns its path.
func NetNS(t testing.TB) string {
	t.Helper()
	name := "slu-" + Unique()
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("ip netns add: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			t.Errorf("ip netns del: %v\n%s", err, out)
		}
	})
	return "/run/netns/" + name
}
