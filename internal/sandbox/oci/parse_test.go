package oci

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/sandbox"
)

func TestParseCgroups(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, mountinfo, controllers string
		file                         string
		roots                        []string
		wantErr                      errs.Class
	}{
		{
			name: "version 2", controllers: "cpuset cpu io memory pids",
			mountinfo: "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 master:1 - cgroup2 cgroup2 rw,nsdelegate\n",
			file:      "/sys/fs/cgroup/sluice-x/m/memory.events", roots: []string{"/sys/fs/cgroup"},
		},
		{
			name: "version 1",
			mountinfo: "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
				"32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
				"35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
			file:  "/sys/fs/cgroup/memory/sluice-x/m/memory.oom_control",
			roots: []string{"/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory"},
		},
		{
			name: "hybrid", controllers: "hugetlb",
			mountinfo: "32 31 0:29 / /c/cpu rw - cgroup cgroup rw,cpu\n35 31 0:32 / /c/mem rw - cgroup cgroup rw,memory\n" +
				"41 31 0:38 / /c/unified rw - cgroup2 cgroup2 rw\n",
			file: "/c/mem/sluice-x/m/memory.oom_control", roots: []string{"/c/cpu", "/c/mem", "/c/unified"},
		},
		{name: "none", mountinfo: "22 27 0:21 / /proc rw - proc proc rw\n", wantErr: errs.Unavailable},
		{name: "garbage", mountinfo: "x\n - \n1 2 3 - cgroup\n", wantErr: errs.Unavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, err := parseCgroups(strings.NewReader(tc.mountinfo), func(string) string { return tc.controllers })
			if errs.ClassOf(err) != tc.wantErr {
				t.Fatalf("error %v", err)
			}
			if err != nil {
				return
			}
			if got := c.file("/sluice-x/m", "memory", "memory.oom_control", "memory.events"); got != tc.file {
				t.Errorf("file %s, want %s", got, tc.file)
			}
			if diff := cmp.Diff(tc.roots, c.roots); diff != "" {
				t.Errorf("roots (-want +got):\n%s", diff)
			}
		})
	}
}

// TestVersion2Files reads counters as version 2 lays them out; this machine's own may be version 1.
func TestVersion2Files(t *testing.T) {
	t.Parallel()
	c := cgroups{v2: t.TempDir()}
	write := func(name, content string) {
		t.Helper()
		path := filepath.Join(c.v2, "sluice-x", "m", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("memory.current", "3000\n")
	write("memory.stat", "anon 1000\ninactive_file 500\n")
	write("memory.events", "low 0\noom 2\noom_kill 1\n")
	write("cpu.stat", "usage_usec 2500000\nuser_usec 1\n")
	got, err := c.usage("/sluice-x/m") // an old kernel, without memory.peak
	if want := (sandbox.Usage{MemoryBytes: 2500, PeakMemoryBytes: 3000, CPUSeconds: 2.5}); err != nil || got != want {
		t.Errorf("usage %+v, want %+v (%v)", got, want, err)
	}
	write("memory.peak", "4000\n")
	if got, err := c.usage("/sluice-x/m"); err != nil || got.PeakMemoryBytes != 4000 {
		t.Errorf("usage %+v, %v", got, err)
	}
	if n := c.oomKills("/sluice-x/m"); n != 1 {
		t.Errorf("%d kills", n)
	}
	if _, err := c.usage("/sluice-x/none"); !os.IsNotExist(err) {
		t.Errorf("usage of nothing: %v", err)
	}
}

func TestResize(t *testing.T) {
	t.Parallel()
	size := core.MemberSize{CPUs: 1.5, MemoryMiB: 2}
	for name, tc := range map[string]struct {
		v2         bool
		have, want map[string]string
	}{
		"version 2": {true, map[string]string{"memory.max": "9", "cpu.max": "max 100000"},
			map[string]string{"memory.max": "2097152", "cpu.max": "150000 100000"}},
		"version 1": {false, map[string]string{"memory.limit_in_bytes": "9", "memory.memsw.limit_in_bytes": "9", "cpu.cfs_quota_us": "1000"},
			map[string]string{"memory.limit_in_bytes": "2097152", "memory.memsw.limit_in_bytes": "2097152", "cpu.cfs_quota_us": "150000"}},
		"version 1 without swap": {false, map[string]string{"memory.limit_in_bytes": "9", "cpu.cfs_quota_us": "1000"},
			map[string]string{"memory.limit_in_bytes": "2097152", "cpu.cfs_quota_us": "150000"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			c := cgroups{byName: map[string]string{"memory": dir, "cpu": dir}}
			if tc.v2 {
				c = cgroups{v2: dir}
			}
			for file, text := range tc.have {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.resize("", size); err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for _, file := range subfiles(t, dir) {
				raw, err := os.ReadFile(filepath.Join(dir, file))
				if err != nil {
					t.Fatal(err)
				}
				got[file] = string(raw)[:min(len(raw), len(tc.want[file]))] // a file here keeps what it is not written over
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func subfiles(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func FuzzParseCgroups(f *testing.F) {
	f.Add("32 31 0:29 / /c/cpu rw - cgroup cgroup rw,cpu\n41 31 0:38 / /c/u rw - cgroup2 cgroup2 rw\n", "cpu memory")
	f.Fuzz(func(t *testing.T, mountinfo, controllers string) {
		c, err := parseCgroups(strings.NewReader(mountinfo), func(string) string { return controllers })
		if err == nil && c.v2 == "" && (c.byName["memory"] == "" || c.byName["cpu"] == "") {
			t.Errorf("no controllers in %+v", c)
		}
	})
}

func TestLastError(t *testing.T) {
	t.Parallel()
	log := `{"level":"warning","msg":"careful"}
{"level":"error","msg":"first"}
garbage
{"level":"error","msg":"runc create failed: no space"}
`
	if got := lastError([]byte(log)); got != "runc create failed: no space" {
		t.Errorf("got %q", got)
	}
	if got := lastError([]byte("panic: x")); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestSpecHasNoSecret(t *testing.T) {
	t.Parallel()
	s := sandbox.Spec{ID: "m", NetNS: "/run/netns/x", Boot: []byte("s3cr3t"), Labels: map[string]string{"l": "label"},
		Size: core.MemberSize{CPUs: 2, MemoryMiB: 8192}}
	raw, err := json.Marshal(buildSpec(s, "/r", "/sluice-x/m"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(raw), "s3cr3t") {
		t.Error("the runtime's configuration holds the boot data")
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	good := Options{Instance: "x", Dir: "/run/sluice/x", Program: "/p"}
	for name, change := range map[string]func(*Options){
		"no instance":   func(o *Options) { o.Instance = "" },
		"a path":        func(o *Options) { o.Instance = "../x" },
		"relative dir":  func(o *Options) { o.Dir = "run" },
		"no program":    func(o *Options) { o.Program = "" },
		"root as a dir": func(o *Options) { o.Dir = "/" },
	} {
		o := good
		change(&o)
		if _, err := New(o); errs.ClassOf(err) != errs.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
}
