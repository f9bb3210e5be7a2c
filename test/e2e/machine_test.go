package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/test/e2e/stack"
)

// fails runs a command that must end by itself, soon.
func fails(t *testing.T, cmd *exec.Cmd) stack.Result {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	timer := time.AfterFunc(60*time.Second, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait()
	if !timer.Stop() {
		t.Errorf("%v went on", cmd.Args)
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("took %v to say so", took)
	}
	return stack.Result{Out: out.String(), Err: errOut.String(), Exit: cmd.ProcessState.ExitCode()}
}

// upArgs is the command line of "sluice up" for an installation.
func upArgs(s *stack.Stack) []string {
	return []string{"up", "--data-dir", s.Data, "--http", s.HTTP, "--flight", s.Flight, "--hosts", s.Hosts, "--socket", s.Socket, "--run-dir", s.Run}
}

// TestASecondUp starts a second installation on what the first one holds.
func TestASecondUp(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	pid := fmt.Sprint(c.procPID("up"))
	for _, tc := range []struct {
		name   string
		change func(*stack.Stack)
		texts  []string
	}{
		{"data directory", func(s *stack.Stack) { s.Data = c.Data }, []string{c.Data, "in use", pid, "hint: "}},
		{"run directory", func(s *stack.Stack) { s.Run = c.Run }, []string{c.Run, "in use", pid, "hint: "}},
		{"http", func(s *stack.Stack) { s.HTTP = c.HTTP }, []string{c.HTTP, "in use", "hint: "}},
		{"flight", func(s *stack.Stack) { s.Flight = c.Flight }, []string{c.Flight, "in use", "hint: "}},
		{"hosts", func(s *stack.Stack) { s.Hosts = c.Hosts }, []string{c.Hosts, "in use", "hint: "}},
		{"socket", func(s *stack.Stack) { s.Socket = c.Socket }, []string{c.Socket, "in use", "hint: "}},
		{"everything", func(s *stack.Stack) {
			s.Data, s.Run, s.HTTP, s.Flight, s.Hosts, s.Socket = c.Data, c.Run, c.HTTP, c.Flight, c.Hosts, c.Socket
		}, []string{"in use", pid, "hint: "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := c.on(t)
			second := *stack.New(t) // a copy is changed: the original cleans up its own names
			tc.change(&second)
			wantFailure(t, fails(t, second.Command(upArgs(&second)...)), 1, tc.texts...)
			if got := c.value("select 1"); got != "1" {
				t.Errorf("the first installation: %q", got)
			}
		})
	}
}

// procPID is the process ID of a program of the installation.
func (c *corp) procPID(name string) int {
	c.t.Helper()
	p := c.Proc(name)
	if p == nil {
		c.t.Fatalf("%s does not run", name)
		return 0
	}
	return p.Cmd.Process.Pid
}

func TestWithoutPrivileges(t *testing.T) {
	busy.take(t)
	s := stack.New(t)
	if err := os.Chmod(s.Dir, 0o777); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", filepath.Join(s.Bin, "sluice")}, upArgs(s)...)...)
	r := fails(t, cmd)
	wantFailure(t, r, 4, "needs root", "CAP_NET_ADMIN (network interfaces", "CAP_SYS_ADMIN", "hint: ", "sudo")
	if _, err := os.Stat(s.Data); err == nil {
		t.Error("the data directory was made before the refusal")
	}
	cmd = exec.Command("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", filepath.Join(s.Bin, "sluice"))
	cmd.Args = append(cmd.Args, upArgs(s)...)
	r = fails(t, cmd)
	wantFailure(t, r, 4, "CAP_NET_ADMIN")
	if strings.Contains(r.Err, "CAP_SYS_ADMIN") {
		t.Errorf("names a capability that is there:\n%s", r.Err)
	}
}

func TestWithoutTools(t *testing.T) {
	busy.take(t)
	for missing, present := range map[string]string{"runc": "nft", "nft": "runc"} {
		t.Run(missing, func(t *testing.T) {
			s := stack.New(t)
			path, err := exec.LookPath(present)
			if err != nil {
				t.Fatal(err)
			}
			bin := filepath.Join(s.Dir, "bin")
			if err := os.Mkdir(bin, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(path, filepath.Join(bin, present)); err != nil {
				t.Fatal(err)
			}
			cmd := s.Command(upArgs(s)...)
			cmd.Env = append(cmd.Env, "PATH="+bin)
			wantFailure(t, fails(t, cmd), 2, missing+" is not installed", "hint: apt-get install")
		})
	}
	t.Run("member's program", func(t *testing.T) {
		s := stack.New(t)
		cmd := s.Command(append(upArgs(s), "--gateway-program", "/nonexistent/sluice-gateway")...)
		wantFailure(t, fails(t, cmd), 2, "/nonexistent/sluice-gateway", "hint: ")
	})
}

// TestDiskFull fills the data directory under a running installation.
func TestDiskFull(t *testing.T) {
	busy.take(t)
	c := prepareCorp(t, t, sharedPG(t))
	if err := os.Mkdir(c.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("sluice-e2e", c.Data, "tmpfs", 0, "size=16m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Stop("up", syscall.SIGTERM)
		if err := syscall.Unmount(c.Data, 0); err != nil {
			t.Errorf("unmount: %v", err)
			_ = syscall.Unmount(c.Data, syscall.MNT_DETACH)
		}
	})
	c.Up()
	c.applyExample()
	if got := c.value("select 1"); got != "1" {
		t.Fatal(got)
	}
	filler := filepath.Join(c.Data, "filler")
	fill(t, filler)

	zone := func(i int) string {
		return fmt.Sprintf("kind: PrivateDNSZone\nname: z%d.internal\nvnets: [corp]\n---\nkind: NetworkSecurityGroup\nname: z%d\nrules:\n%s", i, i, manyRules(200))
	}
	refused := false
	for i := range 40 { // the journal may still have room for a few
		out, err := c.input(zone(i), "apply", "-f", "-")
		if err == nil {
			continue
		}
		refused = true
		for _, text := range []string{"error: ", "full", c.Data, "hint: "} {
			if !strings.Contains(out, text) {
				t.Errorf("apply on a full disk lacks %q:\n%s", text, out)
			}
		}
		if code := err.(*exec.ExitError).ExitCode(); code != 1 {
			t.Errorf("exit status %d, want 1", code)
		}
		if r := c.Sluice("get", "privatednszone", fmt.Sprintf("z%d.internal", i)); r.Exit != 3 {
			t.Errorf("half of a refused apply is there: %+v", r)
		}
		break
	}
	if !refused {
		t.Fatal("a full disk refused nothing")
	}
	if got := c.value("select 2"); got != "2" {
		t.Errorf("a query on a running member while the disk is full: %q", got)
	}
	if out := c.Must("get", "gateways"); !strings.Contains(out, gateway) {
		t.Errorf("reading while the disk is full:\n%s", out)
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "apply works again", func() bool {
		_, err := c.input(zone(99), "apply", "-f", "-")
		return err == nil
	})
	c.Must("gateway", "restart", gateway)
	if got := c.value("select 3"); got != "3" {
		t.Errorf("after space was freed: %q", got)
	}
	eventually(t, 60*time.Second, "the queries that ran meanwhile are in the log", func() bool {
		return strings.Contains(c.Must("queries"), "select 2")
	})
}

// fill writes to a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
}

// manyRules is a list of NSG rules, to have something large to store.
func manyRules(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "  - {name: rule-%d, priority: %d, direction: Inbound, access: Allow, protocol: TCP, source: [10.%d.0.0/16], destination: [Any]}\n", i, 100+i, i%250)
	}
	return b.String()
}

// TestUpOnAFullDisk says at once, and with the path, that there is no room.
func TestUpOnAFullDisk(t *testing.T) {
	busy.take(t)
	s := stack.New(t)
	if err := os.Mkdir(s.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("sluice-e2e", s.Data, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(s.Data, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	fill(t, filepath.Join(s.Data, "filler"))
	wantFailure(t, fails(t, s.Command(upArgs(s)...)), 1, s.Data, "no space left on device")
}
