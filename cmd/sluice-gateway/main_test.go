package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/testpg"
	"github.com/sluice-gateway/sluice/internal/tunnel/tunneltest"
)

// program builds sluice-gateway as it ships, once for the test binary.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sluice-gateway-test")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "sluice-gateway")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=v-test", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := program(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

func build(t *testing.T) string {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestVersion(t *testing.T) {
	t.Parallel()
	out, err := exec.Command(build(t), "--version").Output()
	if err != nil || string(out) != "sluice-gateway v-test\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// The member is small and static: it is copied into every sandbox, and its tables and
// init functions are paid at every wake.
func TestProgramIsSmallAndStatic(t *testing.T) {
	t.Parallel()
	path := build(t)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f MB", float64(info.Size())/1e6)
	if info.Size() > 20e6 {
		t.Errorf("sluice-gateway has grown to %d bytes", info.Size())
	}
	if out, _ := exec.Command("ldd", path).CombinedOutput(); !strings.Contains(string(out), "not a dynamic executable") {
		t.Errorf("ldd: %s", out)
	}
}

func TestWrongStarts(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		args   []string
		boot   string
		status int
		want   string
	}{
		"an argument":    {[]string{"--token=hunter2"}, "", 2, "takes no argument but --version"},
		"no boot":        {nil, "", 2, "is not the JSON that a host writes"},
		"a broken boot":  {nil, `{"joinToken":"hunter2`, 2, "is not the JSON that a host writes"},
		"half a boot":    {nil, `{"joinToken":"hunter2"}`, 2, `lacks \"member\"`},
		"no service":     {nil, `{"member":"m","relay":"127.0.0.1:1","serviceCa":"x","joinToken":"hunter2"}`, 2, "CA certificate"},
		"no descriptor ": {nil, "none", 2, "boot document"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(build(t), tt.args...)
			if tt.boot != "none" {
				cmd.ExtraFiles = []*os.File{pipeOf(t, tt.boot)}
			}
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != tt.status {
				t.Errorf("%v, want status %d", err, tt.status)
			}
			if !strings.Contains(string(out), tt.want) || strings.Contains(string(out), "hunter2") {
				t.Errorf("output: %s", out)
			}
		})
	}
}

func pipeOf(t *testing.T, content string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	go func() {
		defer w.Close()
		_, _ = io.WriteString(w, content)
	}()
	return r
}

// process is a running sluice-gateway behind a real service.
type process struct {
	cmd    *exec.Cmd
	log    *bytes.Buffer // read it after the end
	client *http.Client
}

const token = "the-one-time-token"

func start(t *testing.T) process {
	t.Helper()
	service := tunneltest.StartService(t, tunneltest.Options{})
	relay := tunneltest.NewRelay(t, service.Addr, tunneltest.Logger(t))
	relay.Start()
	service.AddToken(token, identity.Subject{Role: memberapi.RoleMember, Name: tunneltest.Member, Generation: tunneltest.Generation})
	boot, err := json.Marshal(memberapi.Boot{
		Member: tunneltest.Member, Generation: tunneltest.Generation, Relay: relay.Addr, ServiceName: identity.ServiceName,
		ServiceCA: string(service.CA.CertPEM()), JoinToken: token, Parked: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	p := process{cmd: exec.Command(build(t)), log: new(bytes.Buffer)}
	p.cmd.Stderr = p.log
	p.cmd.Env = []string{"SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt", "GOMEMLIMIT=512MiB"}
	p.cmd.ExtraFiles = []*os.File{pipeOf(t, string(boot))}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		if t.Failed() {
			t.Logf("log:\n%s", p.log)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), tunneltest.Patience)
	defer cancel()
	if err := service.Hub.WaitUp(ctx, tunneltest.Member, tunneltest.Generation); err != nil {
		t.Fatal(err)
	}
	rt, err := service.Hub.RoundTripper(tunneltest.Member, tunneltest.Generation)
	if err != nil {
		t.Fatal(err)
	}
	p.client = &http.Client{Transport: rt}
	return p
}

// query runs SQL and returns the rows of a whole result.
func (p process) query(t *testing.T, src memberapi.Source, sql string) (rows int64, stats memberapi.Stats) {
	t.Helper()
	body, err := json.Marshal(memberapi.QueryRequest{QueryID: "q", Source: src, SQL: sql})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := p.client.Post("http://member"+memberapi.PathQuery, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		t.Fatalf("status %d: %s", resp.StatusCode, text)
	}
	frames := arrowipc.NewReader(resp.Body, arrowipc.Options{})
	for err == nil {
		var f arrowipc.Frame
		f, err = frames.Next()
		rows += f.Rows
	}
	if err != io.EOF {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.Trailer.Get(memberapi.TrailerStatus) != memberapi.StatusOK {
		t.Fatalf("%v, trailers %v", err, resp.Trailer)
	}
	if err := json.Unmarshal([]byte(resp.Trailer.Get(memberapi.TrailerStats)), &stats); err != nil {
		t.Fatal(err)
	}
	return rows, stats
}

// The real program, confined, with a real PostgreSQL: results, flat memory (promise
// 6), nothing that listens (4), nothing secret in its log (3), and status 0 after a drain.
func TestConfinedMember(t *testing.T) {
	pg := testpg.Shared(t)
	src := memberapi.Source{
		Name: "orders", Type: "postgres", ReadOnly: true,
		Parameters: map[string]string{"host": pg.Host, "port": fmt.Sprint(pg.Port), "database": pg.Database, "tls": "disable"},
		Credential: core.CredentialBasic, Username: pg.User, Password: pg.Password,
	}
	p := start(t)
	var peaks []int64
	for _, n := range []int64{10, 100_000, 2_000_000} {
		rows, stats := p.query(t, src, fmt.Sprintf("select generate_series(1, %d) as n, repeat('secret-row', 10) as s", n))
		if rows != n || stats.Rows != n {
			t.Errorf("%d rows, %d in the statistics, want %d", rows, stats.Rows, n)
		}
		peaks = append(peaks, stats.PeakBytes)
	}
	t.Logf("peak memory after 10, 1e5 and 2e6 rows: %d bytes", peaks)
	if last := peaks[len(peaks)-1]; last > 100<<20 {
		t.Errorf("peak memory is %d bytes", last)
	}
	if l := listening(t, p.cmd.Process.Pid); len(l) > 0 {
		t.Errorf("the member listens: %v", l)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("SIGTERM does not end it")
	}
	for _, secret := range []string{token, pg.Password, "secret-row", "generate_series", "PRIVATE KEY"} {
		if strings.Contains(p.log.String(), secret) {
			t.Errorf("the log tells %q", secret)
		}
	}
	if !strings.Contains(p.log.String(), `"joined"`) {
		t.Error("the log does not tell that it joined")
	}
}

// listening lists the listening TCP sockets that a process holds.
func listening(t *testing.T, pid int) (found []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", pid)
	fds, err := os.ReadDir(dir + "fd")
	if err != nil || len(fds) == 0 {
		t.Fatalf("%d descriptors, %v", len(fds), err)
	}
	var inodes []string
	for _, fd := range fds {
		if to, err := os.Readlink(dir + "fd/" + fd.Name()); err == nil && strings.HasPrefix(to, "socket:[") {
			inodes = append(inodes, strings.Trim(to, "socket:[]"))
		}
	}
	for _, table := range []string{"net/tcp", "net/tcp6"} {
		text, err := os.ReadFile(dir + table)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			const stateListen = "0A"
			if len(f) > 9 && f[3] == stateListen && slices.Contains(inodes, f[9]) {
				found = append(found, f[1])
			}
		}
	}
	return found
}
