package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// program is a file that a host starts members from.
type program struct {
	t    *testing.T
	path string
}

// install puts another program in the file's place, as an upgrade does, and returns the name
// that hosts give it: of its content and of the CA certificates, with their lengths.
func (p program) install(content []byte) (image string) {
	p.t.Helper()
	if err := os.WriteFile(p.path+".new", content, 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(p.path+".new", p.path); err != nil {
		p.t.Fatal(err)
	}
	certs, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		p.t.Fatal(err)
	}
	sum := sha256.New()
	for _, part := range [][]byte{content, certs} {
		fmt.Fprintf(sum, "%s\x00%d\x00", part, len(part))
	}
	return hex.EncodeToString(sum.Sum(nil))[:16]
}

// build returns the members' program as it is, with something behind it that the kernel ignores.
func (c *corp) build(suffix string) []byte {
	c.t.Helper()
	raw, err := os.ReadFile(filepath.Join(c.Bin, "sluice-gateway"))
	if err != nil {
		c.t.Fatal(err)
	}
	return append(raw, suffix...)
}

// newRollout starts an installation whose members run a program of its own, the first build.
func newRollout(t *testing.T, members string) (c *corp, p program, image string) {
	t.Helper()
	c = prepareCorp(t, t, sharedPG(t))
	p = program{t, filepath.Join(c.Dir, "members-program")}
	image = p.install(c.build(""))
	c.rewrite("gateway.yaml", "members: {min: 0, max: 2}", "members: "+members)
	c.Up("--gateway-program", p.path)
	c.applyExample()
	return c, p, image
}

// allRun reports whether so many members exist, all ready and from one program.
func (c *corp) allRun(n int, image string) bool {
	c.t.Helper()
	list := items[memberItem](c, "members")
	for _, m := range list {
		if m.State != "ready" || m.Image != image {
			return false
		}
	}
	return len(list) == n
}

// TestAnotherProgramIsRolledOut replaces the members' program on the disk under load, and while
// the gateway is paused.
func TestAnotherProgramIsRolledOut(t *testing.T) {
	busy.take(t)
	c, p, first := newRollout(t, "{min: 2, max: 2}")
	eventually(t, 90*time.Second, "two members of the first build", func() bool { return c.allRun(2, first) })
	old := c.readyMembers()
	stop := c.load(3)
	second := p.install(c.build("the second build"))
	eventually(t, 180*time.Second, "two members of the second build", func() bool {
		working, all := 0, c.life().Status.Members
		for _, m := range all {
			if m.State == "ready" || m.State == "suspect" {
				working++
			}
		}
		if working < 2 || len(all) > 4 {
			t.Errorf("not one after the other: %+v", all)
		}
		return c.allRun(2, second)
	})
	t.Logf("%d queries ran meanwhile", stop())
	c.wantReplaced(old, "now has program "+second+", not "+first)
	if table := c.Must("get", "members"); !strings.Contains(table, second) {
		t.Errorf("the table:\n%s", table)
	}

	// What waits to become a member is of the second build; the next member is not made of it.
	c.Must("gateway", "pause", gateway)
	third := p.install(c.build("the third build"))
	c.Must("gateway", "wake", gateway)
	for _, pid := range memberPIDs(c) {
		exe, err := os.ReadFile(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil || !strings.HasSuffix(string(exe), "the third build") {
			t.Errorf("process %d runs another program (%v)", pid, err)
		}
	}
	eventually(t, 90*time.Second, "two members of the third build", func() bool { return c.allRun(2, third) })
}

// wantReplaced checks that the gateway's history says why members went.
func (c *corp) wantReplaced(old []memberItem, why string) {
	c.t.Helper()
	history := c.life().Status.MemberHistory
	for _, m := range old {
		said := false
		for _, h := range history {
			said = said || h.Member == m.ID && h.To == "leaving" && strings.Contains(h.Reason, "replaced by ") && strings.Contains(h.Reason, why)
		}
		if !said {
			c.t.Errorf("that %s was replaced because it %q is not in %+v", m.ID, why, history)
		}
	}
}

// TestAProgramThatDoesNotStart replaces the members' program by one that ends at once.
func TestAProgramThatDoesNotStart(t *testing.T) {
	waiting.take(t)
	c, p, first := newRollout(t, "{min: 1, max: 2}")
	eventually(t, 90*time.Second, "a member", func() bool { return c.allRun(1, first) })
	old := c.readyMembers()[0].ID
	stop := c.load(2)
	bad := p.install(buildBroken(t))
	var problem string
	eventually(t, 120*time.Second, "the gateway says that it can't be rolled out", func() bool {
		problem = c.life().Status.Problem
		return strings.Contains(problem, "did not come up")
	})
	for _, part := range []string{"host h1 now has program " + bad + ", not " + first, "wrong machine", "those that run stay", "log of host h1", "another program"} {
		if !strings.Contains(problem, part) {
			t.Errorf("the problem lacks %q: %s", part, problem)
		}
	}
	eventually(t, 60*time.Second, "the host says that nothing can be started in advance", func() bool {
		table := c.Must("get", "hosts")
		return strings.Contains(table, "started in advance") && strings.Contains(table, bad)
	})
	begun := time.Now()
	before := c.placed()
	time.Sleep(8 * time.Second) // what is counted is what happens meanwhile
	// Tries wait for 1, 2, 4 … s: there are no more within any time than doubling allows.
	if n, most := c.placed()-before, 4; time.Since(begun) < 15*time.Second && n > most {
		t.Errorf("%d tries within %v", n, time.Since(begun))
	}
	if ready := c.readyMembers(); len(ready) != 1 || ready[0].ID != old {
		t.Errorf("the old one should be the one that works: %+v", ready)
	}
	second := p.install(c.build("the second build"))
	eventually(t, 120*time.Second, "the next program is rolled out, nothing is said any more", func() bool {
		return c.allRun(1, second) && c.life().Status.Problem == ""
	})
	t.Logf("%d queries ran meanwhile", stop())
}

// placed counts the members that were placed.
func (c *corp) placed() int {
	return strings.Count(c.Proc("up").Log.String(), "member placed")
}

// buildBroken builds a program that says why it can't run, and ends.
func buildBroken(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	source := `package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "this is the wrong machine")
	os.Exit(1)
}
`
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "broken"), filepath.Join(dir, "main.go"))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build it: %v\n%s", err, out)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "broken"))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
