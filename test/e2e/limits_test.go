package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/test/e2e/stack"
)

// meminfo is what a host takes for its machine's memory: a file in the place of
// /proc/meminfo, as lxcfs gives one to a container.
type meminfo struct {
	file *os.File
	run  string // the host's run directory
}

// set changes it, in one piece and without changing its length.
func (m *meminfo) set(t *testing.T, totalMiB, availableMiB int) {
	t.Helper()
	text := fmt.Sprintf("MemTotal:       %10d kB\nMemAvailable:   %10d kB\n", totalMiB<<10, availableMiB<<10)
	if _, err := m.file.WriteAt([]byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

// smallHost starts a host of the installation with a run directory, and a memory, of its own.
func (c *corp) smallHost(t *testing.T, name string, totalMiB, availableMiB int) *meminfo {
	t.Helper()
	own := stack.NewFrom(t, c.Bin) // removes what it makes, and looks whether anything is left
	file, err := os.Create(filepath.Join(own.Dir, "meminfo"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	m := &meminfo{file, own.Run}
	m.set(t, totalMiB, availableMiB)
	// "ip" makes the place of named network namespaces one that mount namespaces share.
	space := "sluice-e2e-shares-" + own.Instance()
	if out, err := exec.Command("sh", "-c", "ip netns add "+space+" && ip netns del "+space).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// A mount namespace of its own; only named network namespaces are seen from outside it.
	if err := os.WriteFile(filepath.Join(own.Dir, "start"), []byte(`#!/bin/sh
set -e
mkdir -p "$1.proc"
mount -t proc proc "$1.proc" # the kernel lets containers mount /proc only if an unchanged one is in sight
mount --bind "$1" /proc/meminfo
shift
exec "$@"
`), 0o755); err != nil {
		t.Fatal(err)
	}
	view := (&corp{Stack: own, t: t}).preceded(t, fmt.Sprintf(`[ -n "$SMALL" ] || { export SMALL=1; exec unshare --mount --propagation unchanged %s/start %s/meminfo "$0" "$@"; }`, own.Dir, own.Dir))
	view.Start("host", "host", "--service", c.Hosts, "--ca", c.Data+"/ca.pem", "--token-file", c.Data+"/host.token", "--name", name, "--run-dir", own.Run, "--pool", "0")
	c.seen(t, name, availableMiB)
	return m
}

// seen waits until the service knows how much memory a host has left.
func (c *corp) seen(t *testing.T, name string, availableMiB int) {
	t.Helper()
	api := c.Client()
	eventually(t, 60*time.Second, fmt.Sprintf("the service sees that %s has %d MiB", name, availableMiB), func() bool {
		hosts, _ := listObjects[core.Host](api, "hosts")
		for _, h := range hosts {
			if h.Name == name {
				return h.Connected && h.Load.AvailableMiB == int64(availableMiB)
			}
		}
		return false
	})
}

// problem is why the gateway has fewer members than it should.
func (c *corp) problem() string {
	c.t.Helper()
	var out struct{ Status struct{ Problem string } }
	if err := json.Unmarshal([]byte(c.Must("get", "gateway", gateway, "-o", "json")), &out); err != nil {
		c.t.Fatal(err)
	}
	return out.Status.Problem
}

// readyOn lists the hosts of the members that take queries.
func (c *corp) readyOn(t *testing.T) (hosts []string) {
	t.Helper()
	for _, m := range objects[core.Member](t, c.Client(), "members") {
		if m.State == core.MemberReady {
			hosts = append(hosts, m.Host)
		}
	}
	return hosts
}

// TestPlacementGoesByWhatHostsHaveLeft runs two hosts that believe in small memories: members go
// where there is room, by what is in use and by what is reserved; where there is none, a query
// is refused at once, and the members that run go on.
func TestPlacementGoesByWhatHostsHaveLeft(t *testing.T) {
	waiting.take(t)
	c := prepareCorp(t, t, sharedPG(t))
	c.Service()
	eventually(t, 60*time.Second, "the service answers", func() bool { return c.Sluice("get", "gateways").Exit == 0 })
	c.rewrite("gateway.yaml", "autoPause: 30m", "autoPause: never")
	c.applyExample()
	h1 := c.smallHost(t, "h1", 2000, 150) // below 128 + 32
	h2 := c.smallHost(t, "h2", 2000, 1500)
	if got := c.value("select 1"); got != "1" {
		t.Fatalf("the gateway gives %q", got)
	}
	if on := c.readyOn(t); len(on) != 1 || on[0] != "h2" {
		t.Errorf("the member is on %q, want h2: h1 is full", on)
	}

	h2.set(t, 2000, 150)
	c.seen(t, "h2", 150)
	c.rewrite("gateway.yaml", "members: {min: 0, max: 2}", "members: {min: 2, max: 4}")
	c.applyExample()
	eventually(t, 60*time.Second, "the gateway says what is the matter", func() bool { return c.problem() != "" })
	for _, text := range []string{"no host has room for another member", "host h1 has 150 MiB of 2000 MiB", "host h2 has 150 MiB of 2000 MiB"} {
		if why := c.problem(); !strings.Contains(why, text) {
			t.Errorf("the problem %q lacks %q", why, text)
		}
	}
	if got := c.value("select 2"); got != "2" || len(c.readyOn(t)) != 1 {
		t.Errorf("on full hosts the member that runs gives %q, and there are %d", got, len(c.readyOn(t)))
	}
	h1.set(t, 2000, 1500)
	eventually(t, 90*time.Second, "the second member comes where there is room again", func() bool {
		on := c.readyOn(t)
		return len(on) == 2 && on[0] != on[1]
	})
	carried := regexp.MustCompile(`(?m)^tunnel +m-\S+ +[1-9]\d* connections to the service, .* [1-9]\d* bytes to the service, [1-9]\d* to the member `)
	for _, h := range []*meminfo{h1, h2} {
		eventually(t, 60*time.Second, "the host's status tells what its relay carried", func() bool { return carried.MatchString(c.Must("host", "status", "--run-dir", h.run)) })
	}

	t.Run("refused at once", func(t *testing.T) {
		c := c.on(t)
		h1.set(t, 2000, 100)
		h2.set(t, 2000, 100)
		c.seen(t, "h1", 100)
		c.seen(t, "h2", 100)
		c.rewrite("gateway.yaml", "members: {min: 2, max: 4}", "members: {min: 0, max: 4}")
		c.applyExample()
		c.Must("gateway", "pause", gateway)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		begun := time.Now()
		resp := c.post(ctx, t, "select 3")
		if d := time.Since(begun); d > 10*time.Second {
			t.Errorf("it was refused after %s", d)
		}
		if after, err := strconv.Atoi(resp.Header.Get("Retry-After")); resp.StatusCode != http.StatusTooManyRequests || err != nil || after < 1 {
			t.Errorf("%s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
		}
		wantFailure(t, c.query("select 3"), 1, "no host has room for another member", "host h2 has 100 MiB", "hint: ", "add a host")
	})
	t.Run("reservations", func(t *testing.T) {
		c := c.on(t)
		h1.set(t, 250, 250) // 128 spare and three times 32, but not four times; what starts has room
		c.seen(t, "h1", 250)
		c.rewrite("gateway.yaml", "members: {min: 0, max: 4}", "members: {min: 4, max: 4}")
		c.applyExample()
		c.Must("gateway", "wake", gateway)
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("members are ready on %q, and the gateway's problem is %q", c.readyOn(t), c.problem())
			}
		})
		eventually(t, 90*time.Second, "three are reserved for", func() bool { return len(c.readyOn(t)) == 3 && strings.Contains(c.problem(), "reservations of 32 MiB") })
		for _, on := range c.readyOn(t) {
			if on != "h1" {
				t.Errorf("a member is on %s, which is full", on)
			}
		}
	})
}

// TestTheCPULimitHolds fills a member's control group with programs that take all the CPU they get.
func TestTheCPULimitHolds(t *testing.T) {
	busy.take(t)
	const cpus = 0.5
	c := prepareCorp(t, t, sharedPG(t))
	c.Up()
	c.rewrite("gateway.yaml", "autoPause: 30m", "autoPause: 30m\nsize: {cpus: 0.5, memoryMiB: 256}")
	c.applyExample()
	c.value("select 1")
	dir := cpuGroup(t, c.pidOf(t, onlyMember(t, c.Client())))
	quota := dir + "/cpu.max"
	if _, err := os.Stat(quota); err != nil { // version 1 of control groups
		quota = dir + "/cpu.cfs_quota_us"
	}
	throttled := func() int {
		text, err := os.ReadFile(dir + "/cpu.stat")
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(text), "nr_throttled ")
		n, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(after, "\n", 2)[0]))
		if err != nil {
			t.Fatalf("cpu.stat: %v\n%s", err, text)
		}
		return n
	}
	before := throttled()
	t.Cleanup(func() {
		if limit, err := os.ReadFile(quota); t.Failed() {
			t.Logf("%s: %s %v, want %v of a CPU", quota, strings.TrimSpace(string(limit)), err, cpus)
		}
	})
	favour(t, dir)
	var spinning []*exec.Cmd
	for range 3 {
		// It is in the group before it begins, so that all of its time counts.
		cmd := exec.Command("sh", "-c", "echo $$ > "+dir+"/cgroup.procs && while :; do :; done")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		spinning = append(spinning, cmd)
	}
	begun := time.Now()
	end := func() (used time.Duration) {
		for _, cmd := range spinning {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			used += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		}
		spinning = nil
		return used
	}
	defer end()
	eventually(t, 120*time.Second, "the kernel holds them back", func() bool { return throttled() > before+10 })
	time.Sleep(3 * time.Second) // the longer the window, the less its ends matter
	used := end()
	wall := time.Since(begun)
	// One period of 100 ms at each end, and what runs before the group is entered.
	if most := time.Duration(cpus*float64(wall)) + 300*time.Millisecond; used > most {
		t.Errorf("in %s they had %s of CPU, want at most %s", wall, used, most)
	}
	if got := c.value("select 2"); got != "2" {
		t.Errorf("afterwards the member gives %q", got)
	}
}

// favour gives a control group, and the one that it is in, all the CPU that it wants up to its
// limit: on a busy machine it would never come that far.
func favour(t *testing.T, dir string) {
	t.Helper()
	for _, group := range []string{filepath.Dir(dir), dir} {
		weight, most := group+"/cpu.weight", "10000"
		if _, err := os.Stat(weight); err != nil { // version 1 of control groups
			weight, most = group+"/cpu.shares", "262144"
		}
		if err := os.WriteFile(weight, []byte(most), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// cpuGroup is the folder of a process's CPU control group, of either version.
func cpuGroup(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		w := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, dir := range []string{"/sys/fs/cgroup/" + w[1] + w[2], "/sys/fs/cgroup" + w[2]} {
			if stat, err := os.ReadFile(dir + "/cpu.stat"); err == nil && strings.Contains(string(stat), "nr_throttled") {
				return dir
			}
		}
	}
	t.Fatalf("process %d is in no CPU control group:\n%s", pid, text)
	return ""
}
