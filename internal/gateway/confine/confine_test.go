package confine

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// TestMain runs the test binary again as a child that confines itself.
func TestMain(m *testing.M) {
	if raw := os.Getenv("SLUICE_CONFINE_CHILD"); raw != "" {
		childMain(raw)
	}
	os.Exit(m.Run())
}

// runChild runs one attempt in a confined child and returns what it said: "ok", or the
// attempt's error.
func runChild(t *testing.T, env childEnv) childResult {
	t.Helper()
	raw, err := json.Marshal(env)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = []string{"SLUICE_CONFINE_CHILD=" + string(raw), "GOTRACEBACK=all", "GORACE=atexit_sleep_ms=0", "SSL_CERT_FILE=" + env.CACerts}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the child died: %v\n%s", err, stderr.String())
	}
	var res childResult
	if err := json.Unmarshal(out, &res); err != nil {
		t.Fatalf("the child said %q: %v", out, err)
	}
	return res
}

func TestAttempts(t *testing.T) {
	t.Parallel()
	srv := startServers(t)
	for name, a := range attempts() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := srv.env
			env.Attempt = name
			res := runChild(t, env)
			if res.ApplyError != "" {
				t.Fatalf("Apply: %s", res.ApplyError)
			}
			if a.works && res.Error != "" {
				t.Errorf("should work, got %s", res.Error)
			}
			if !a.works && !res.Refused {
				t.Errorf("should be refused, got %q", res.Error)
			}
		})
	}
}

// TestAttemptsUnconfined shows that it is confinement that refuses, not the machine.
func TestAttemptsUnconfined(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root: raw sockets and mounts are refused to anyone else anyway")
	}
	srv := startServers(t)
	for name, a := range attempts() {
		if a.works || a.anyway {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := srv.env
			env.Attempt, env.Layers = name, "none"
			if res := runChild(t, env); res.Refused {
				t.Errorf("refused without confinement too: %s", res.Error)
			}
		})
	}
}

// TestLandlockAlone holds the second wall: what it denies does not rest on the filter.
func TestLandlockAlone(t *testing.T) {
	t.Parallel()
	srv := startServers(t)
	for name, works := range map[string]bool{
		"bind TCP": false, "open /etc/passwd": false, "write a file": false, "list a directory": false,
		"read the CA bundle": true, "TCP client": true, "DNS over UDP": true, "TLS client": true,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if abi, err := ll.LandlockGetABIVersion(); name == "bind TCP" && err == nil && abi < bindABI {
				t.Skipf("this kernel's Landlock is version %d: the filter alone denies it", abi)
			}
			env := srv.env
			env.Attempt, env.Layers = name, "landlock"
			if res := runChild(t, env); works != (res.Error == "") || !works && !res.Refused {
				t.Errorf("works: want %v, got %q", works, res.Error)
			}
		})
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	srv := startServers(t)
	env := srv.env
	env.Attempt = "read the CA bundle"
	best := time.Hour
	for range 10 {
		res := runChild(t, env)
		r := res.Report
		if !r.NoNewPrivs || !r.NotDumpable || r.LandlockABI < 1 || !r.Seccomp || len(r.Missing) != 0 {
			t.Fatalf("report = %+v", r)
		}
		best = min(best, r.Took)
	}
	t.Logf("Apply took %v at best", best)
	// The race detector and busy cores make single runs slow; the best of ten is a property
	// of the code.
	if best > 20*time.Millisecond {
		t.Errorf("Apply took %v at best of ten", best)
	}
}

func TestMissingLayer(t *testing.T) {
	t.Parallel()
	// A CA bundle that does not exist makes the Landlock layer fail.
	missing := filepath.Join(t.TempDir(), "none.crt")
	for _, tc := range []struct {
		name     string
		degraded bool
		wantErr  bool
	}{
		{"is an error", false, true},
		{"unless it is allowed", true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			res := runChild(t, childEnv{Attempt: "listen", CACerts: missing, AllowDegraded: tc.degraded})
			if (res.ApplyError != "") != tc.wantErr {
				t.Errorf("Apply: %q", res.ApplyError)
			}
			if len(res.Report.Missing) != 1 || !strings.Contains(res.Report.Missing[0], "Landlock") {
				t.Errorf("missing = %q", res.Report.Missing)
			}
			if !res.Report.Seccomp || !res.Refused {
				t.Errorf("the other layers must be in force: %+v, %q", res.Report, res.Error)
			}
		})
	}
}

// TestProgram runs the filter itself, in the BPF machine of golang.org/x/net.
func TestProgram(t *testing.T) {
	t.Parallel()
	const pid = 4711
	vm, err := bpf.NewVM(program(pid))
	if err != nil {
		t.Fatal(err)
	}
	const cloexec = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	for _, tc := range []struct {
		name string
		nr   uint32
		args [3]uint64
		want uint32
	}{
		{"read", unix.SYS_READ, [3]uint64{}, retAllow},
		{"TCP socket", unix.SYS_SOCKET, [3]uint64{unix.AF_INET, unix.SOCK_STREAM | cloexec, 0}, retAllow},
		{"UDP socket", unix.SYS_SOCKET, [3]uint64{unix.AF_INET, unix.SOCK_DGRAM | cloexec, unix.IPPROTO_UDP}, retAllow},
		{"MPTCP socket", unix.SYS_SOCKET, [3]uint64{unix.AF_INET, unix.SOCK_STREAM | cloexec, 262}, retEPERM},
		{"ICMP socket", unix.SYS_SOCKET, [3]uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, retEPERM},
		{"raw socket", unix.SYS_SOCKET, [3]uint64{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP}, retEPERM},
		{"IPv6 socket", unix.SYS_SOCKET, [3]uint64{unix.AF_INET6, unix.SOCK_STREAM, 0}, retEPERM},
		{"thread", unix.SYS_CLONE, [3]uint64{unix.CLONE_THREAD | unix.CLONE_VM}, retAllow},
		{"fork", unix.SYS_CLONE, [3]uint64{uint64(unix.SIGCHLD)}, retEPERM},
		{"thread in a new namespace", unix.SYS_CLONE, [3]uint64{unix.CLONE_THREAD | unix.CLONE_NEWUSER}, retEPERM},
		{"clone3", unix.SYS_CLONE3, [3]uint64{}, retENOSYS},
		{"own signal", unix.SYS_TGKILL, [3]uint64{pid}, retAllow},
		{"another's signal", unix.SYS_TGKILL, [3]uint64{pid + 1}, retEPERM},
		{"executable mapping", unix.SYS_MMAP, [3]uint64{0, 0, unix.PROT_READ | unix.PROT_EXEC}, retEPERM},
		{"mapping", unix.SYS_MMAP, [3]uint64{0, 0, unix.PROT_READ | unix.PROT_WRITE}, retAllow},
		{"read a limit", unix.SYS_PRLIMIT64, [3]uint64{0, unix.RLIMIT_NOFILE, 0}, retAllow},
		{"set a limit", unix.SYS_PRLIMIT64, [3]uint64{0, unix.RLIMIT_NOFILE, 1 << 40}, retEPERM},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if got := verdict(t, vm, auditArch, tc.nr, tc.args); got != tc.want {
				t.Errorf("verdict %#x, want %#x", got, tc.want)
			}
		})
	}
	if got := verdict(t, vm, unix.AUDIT_ARCH_I386, unix.SYS_READ, [3]uint64{}); got != retEPERM {
		t.Errorf("another architecture: %#x", got)
	}
}

// TestProgramNeverConfusesArguments tries every number against arguments that look like
// numbers of allowed calls: whatever is not listed must stay denied.
func TestProgramNeverConfusesArguments(t *testing.T) {
	t.Parallel()
	vm, err := bpf.NewVM(program(1))
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[uint32]bool{}
	for _, nr := range always() {
		allowed[nr] = true
	}
	conds := map[uint32]bool{unix.SYS_CLONE3: true}
	for _, r := range conditional(1) {
		conds[r.nr] = true
	}
	for nr := range uint32(600) {
		for a := range uint64(64) {
			got := verdict(t, vm, auditArch, nr, [3]uint64{a, a, a})
			switch {
			case allowed[nr] && got != retAllow:
				t.Fatalf("call %d is listed but got %#x", nr, got)
			case !allowed[nr] && !conds[nr] && got != retEPERM:
				t.Fatalf("call %d with arguments %d got %#x", nr, a, got)
			case nr == unix.SYS_SOCKET && got == retAllow && a != unix.AF_INET:
				t.Fatalf("socket(%d, %d, %d) is allowed", a, a, a)
			}
		}
	}
}

// verdict gives a call to the filter. The VM reads big-endian, the kernel native words.
func verdict(t *testing.T, vm *bpf.VM, arch, nr uint32, args [3]uint64) uint32 {
	t.Helper()
	words := []uint32{nr, arch, 0, 0}
	for _, a := range args {
		words = append(words, uint32(a), uint32(a>>32))
	}
	in := make([]byte, 64)
	for i, w := range words {
		in[4*i], in[4*i+1], in[4*i+2], in[4*i+3] = byte(w>>24), byte(w>>16), byte(w>>8), byte(w)
	}
	out, err := vm.Run(in)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(out)
}
