package oci

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/sandbox"
	"github.com/sluice-gateway/sluice/internal/sandbox/sandboxtest"
	"github.com/sluice-gateway/sluice/internal/testseed"
)

// TestManagerKilled kills a manager with SIGKILL at random points of its starts. What it
// left must be listed, startable again and removable.
func TestManagerKilled(t *testing.T) {
	t.Parallel()
	killRounds(t, false)
}

// TestManagerKilledAdopting is the same for one that prepares and adopts. Besides, what it
// left is a member with its labels or a blank without, and the blanks end by themselves.
func TestManagerKilledAdopting(t *testing.T) {
	t.Parallel()
	killRounds(t, true)
}

func killRounds(t *testing.T, prepare bool) {
	i := newInstallation(t)
	h := sandboxtest.Harness{NetNS: sandboxtest.NetNS(t)}
	random := rand.New(rand.NewPCG(testseed.Of(t), 3))
	for round := range 16 {
		var specs []sandbox.Spec
		for n := range 3 {
			specs = append(specs, h.Spec(fmt.Sprintf("m-%d-%d", n, round), sandboxtest.Command{Do: "sleep"}))
		}
		after := time.Duration(random.Int64N(int64(120 * time.Millisecond)))
		killManager(t, i, specs, after, prepare)
		r := i.manager(t)
		exactly(t, r, after)
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

// exactly checks that each sandbox is listed as what it is.
func exactly(t *testing.T, r *Runtime, after time.Duration) {
	t.Helper()
	states, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pids := map[int]string{}
	for _, st := range states {
		switch isBlank := strings.HasPrefix(st.ID, "blank-"); {
		// A blank whose record was not written yet has no labels either.
		case isBlank && len(st.Labels) > 0:
			t.Errorf("killed after %v: a blank: %+v", after, st)
		case !isBlank && (st.Blank || st.Running && st.Labels["member"] != st.ID):
			t.Errorf("killed after %v: a member: %+v", after, st)
		case st.Running && pids[st.PID] != "":
			t.Errorf("killed after %v: process %d is listed as %s and %s", after, st.PID, pids[st.PID], st.ID)
		}
		pids[st.PID] = st.ID
		if st.Blank {
			waitProcess(t, r, st.ID)
		}
	}
}

// waitProcess waits until a blank that nobody holds has ended by itself.
func waitProcess(t *testing.T, r *Runtime, id string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		p := r.find(id)
		if p == nil {
			return
		}
		p.close()
		if time.Now().After(end) {
			t.Fatalf("%s goes on although its host died", id)
		}
	}
}

// killManager runs a helper process that starts specs and kills it after a while.
func killManager(t *testing.T, i *installation, specs []sandbox.Spec, after time.Duration, prepare bool) {
	t.Helper()
	raw, err := json.Marshal(managerJob{i.opts.Instance, i.opts.Dir, i.opts.Program, specs, prepare})
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
	cmd.Wait() // it was killed
}
