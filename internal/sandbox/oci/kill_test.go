package oci

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/sandbox"
	"github.com/sluice-gateway/sluice/internal/sandbox/sandboxtest"
)

// TestManagerKilled kills a manager with SIGKILL at random points of its starts. What it
// left must be listed, startable again and removable.
func TestManagerKilled(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	h := sandboxtest.Harness{NetNS: sandboxtest.NetNS(t)}
	for round := range 16 {
		var specs []sandbox.Spec
		for n := range 3 {
			specs = append(specs, h.Spec(fmt.Sprintf("m-%d-%d", n, round), sandboxtest.Command{Do: "sleep"}))
		}
		after := time.Duration(rand.Int64N(int64(120 * time.Millisecond)))
		killManager(t, i, specs, after)
		r := i.manager(t)
		if round%2 == 0 {
			// Start again what may be half made, as a host that restarted would.
			sandboxtest.MustStart(t, r, specs[0])
			if st, ok := sandboxtest.Get(t, r, specs[0].ID); !ok || !st.Running || st.Labels["member"] != specs[0].ID {
				t.Errorf("killed after %v: %+v", after, st)
			}
		}
		if round%4 < 2 {
			for _, s := range specs {
				sandboxtest.MustStop(t, r, s.ID)
			}
		}
		if err := r.CleanUp(t.Context()); err != nil {
			t.Fatalf("killed after %v: CleanUp: %v", after, err)
		}
		if left := i.leftovers(); len(left) > 0 {
			t.Fatalf("killed after %v: left over: %q", after, left)
		}
	}
}

// killManager runs a helper process that starts specs and kills it after a while.
func killManager(t *testing.T, i *installation, specs []sandbox.Spec, after time.Duration) {
	t.Helper()
	raw, err := json.Marshal(managerJob{i.opts.Instance, i.opts.Dir, i.opts.Program, specs})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "SLUICE_OCI_MANAGER="+string(raw))
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the manager said %q: %v", line, err)
	}
	time.Sleep(after)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() //nolint:errcheck // it was killed
}
