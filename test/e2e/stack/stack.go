// Package stack runs real installations for tests: the real programs, on the real
// kernel, with a real runtime, each with directories, addresses and names of its own.
//
// The end-to-end tests and the benchmarks use it. Everything that it starts ends with
// the test, and what a test leaves on the machine fails it.
package stack

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/internal/testport"
)

// TB is what an installation needs of the test, or of the program, that runs it. A
// testing.TB is one.
type TB interface {
	Helper()
	Cleanup(f func())
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Failed() bool
}

// Stack is one installation: service and host in one process, or apart.
type Stack struct {
	Dir    string // of the test
	Data   string
	Run    string
	Socket string
	HTTP   string
	Flight string
	Hosts  string
	Bin    string // the folder with the programs
	// Launch starts a program in the place of its Start, if it is set.
	Launch func(name string, cmd *exec.Cmd) error

	t     TB
	procs *procs // shared with the views that For makes
}

// procs are the programs of an installation by name.
type procs struct {
	mu    sync.Mutex
	named map[string]*Proc
	token string
	runs  []string // run directories of further hosts
}

func (p *procs) addRun(dir string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.runs = append(p.runs, dir)
}

func (p *procs) moreRuns() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.runs)
}

func (p *procs) get(name string) *Proc {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.named[name]
}

func (p *procs) put(name string, proc *Proc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.named[name] = proc
}

func (p *procs) all() map[string]*Proc {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.named)
}

// Proc is a running program of an installation.
type Proc struct {
	Cmd  *exec.Cmd
	Log  *Log
	done chan struct{}
}

// Log collects what a program writes.
type Log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// String returns what was written so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// built are programs that were built once for a test binary.
type built struct {
	once sync.Once
	dir  string
	err  error
}

var build, plain built

func (b *built) binaries(t TB, compile func(dir string) error) string {
	t.Helper()
	b.once.Do(func() {
		b.dir, b.err = os.MkdirTemp("", "sluice-bin-")
		if b.err == nil {
			b.err = compile(b.dir)
		}
	})
	if b.err != nil {
		t.Fatalf("build the programs: %v", b.err)
	}
	return b.dir
}

// Binaries builds the programs, once per test binary, and returns their folder. sluice
// is built with the race detector if the test is. Programs that were built before, in
// the folder SLUICE_TEST_BIN, are taken in their place.
func Binaries(t TB) string {
	t.Helper()
	if dir := os.Getenv("SLUICE_TEST_BIN"); dir != "" {
		return dir
	}
	return build.binaries(t, func(dir string) error { return compile(dir, raceEnabled, "-s -w") })
}

// Plain builds the programs without the race detector, whatever the test is built with, and
// with their symbols: for tests that measure what they take. Programs in SLUICE_TEST_BIN are
// taken in their place, and must be like that.
func Plain(t TB) string {
	t.Helper()
	if dir := os.Getenv("SLUICE_TEST_BIN"); dir != "" {
		return dir
	}
	return plain.binaries(t, func(dir string) error { return compile(dir, false, "") })
}

// RemoveBinaries removes what Binaries and Plain built: for TestMain.
func RemoveBinaries() {
	for _, b := range []*built{&build, &plain} {
		if b.dir != "" {
			os.RemoveAll(b.dir)
		}
	}
}

func compile(dir string, race bool, memberFlags string) error {
	args, env := []string{"build", "-trimpath"}, "CGO_ENABLED=0"
	if race {
		args, env = append(args, "-race"), "CGO_ENABLED=1"
	}
	for _, c := range []struct {
		env  string
		args []string
	}{
		{"CGO_ENABLED=0", []string{"build", "-trimpath", "-ldflags=" + memberFlags, "-o", dir + "/", "github.com/sluice-gateway/sluice/cmd/sluice-gateway"}},
		{env, append(args, "-o", dir+"/", "github.com/sluice-gateway/sluice/cmd/sluice")},
	} {
		cmd := exec.Command("go", c.args...)
		cmd.Env = append(os.Environ(), c.env)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(c.args, " "), err, out)
		}
	}
	return os.Chmod(dir, 0o755)
}

// New prepares an installation; nothing runs yet. What it made on the machine is
// removed at the end of the test, and the test fails if something stays.
func New(t TB) *Stack {
	t.Helper()
	return NewFrom(t, Binaries(t))
}

// NewFrom is New with programs that were built before, in the folder bin.
func NewFrom(t TB, bin string) *Stack {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: it makes network namespaces and containers")
	}
	dir, err := os.MkdirTemp("", "sluice-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	s := &Stack{
		Dir: dir, Data: filepath.Join(dir, "data"), Run: "/run/" + filepath.Base(dir), Socket: filepath.Join(dir, "sock"),
		HTTP: freeAddr(t), Flight: freeAddr(t), Hosts: freeAddr(t), Bin: bin, t: t, procs: &procs{named: map[string]*Proc{}},
	}
	t.Cleanup(s.end)
	return s
}

// For returns a view of the installation that reports to another test, which uses it
// while its owner keeps it.
func (s *Stack) For(t TB) *Stack {
	view := *s
	view.t = t
	return &view
}

// freeAddr returns an address that nobody listens on now.
func freeAddr(t TB) string {
	port, err := testport.Free()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// end stops and removes everything.
func (s *Stack) end() {
	for name := range s.procs.all() {
		s.Stop(name, syscall.SIGTERM)
	}
	for _, run := range append(s.procs.moreRuns(), s.Run) {
		if out, err := s.Command("host", "cleanup", "--run-dir", run).CombinedOutput(); err != nil {
			s.t.Errorf("host cleanup of %s: %v\n%s", run, err, out)
		}
		defer os.RemoveAll(run)
	}
	if left := s.Leftovers(); len(left) > 0 {
		s.t.Errorf("left on the machine:\n%s", strings.Join(left, "\n"))
	}
	if s.t.Failed() {
		for name, p := range s.procs.all() {
			s.t.Logf("log of %s:\n%s", name, tail(p.Log.String(), 16<<10))
		}
	}
	os.RemoveAll(s.Dir)
}

func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "…" + s[len(s)-n:]
}

// Up starts service and host in one process and waits until both are ready.
func (s *Stack) Up(extra ...string) *Proc {
	s.t.Helper()
	args := append([]string{"up"}, s.serviceArgs()...)
	args = append(append(args, s.hostArgs()...), extra...)
	p := s.Start("up", args...)
	s.Ready()
	return p
}

// Service starts the service alone; Host the host alone.
func (s *Stack) Service(extra ...string) *Proc {
	s.t.Helper()
	return s.Start("service", append(append([]string{"service"}, s.serviceArgs()...), extra...)...)
}

// Host starts the host alone, against this installation's service.
func (s *Stack) Host(extra ...string) *Proc {
	s.t.Helper()
	return s.Start("host", append(append(s.joinArgs(), s.hostArgs()...), extra...)...)
}

// AnotherHost starts one more host on this machine, with a run directory of its own, which is
// as far apart from the first as two hosts on one machine can be.
func (s *Stack) AnotherHost(name string, extra ...string) *Proc {
	s.t.Helper()
	run := s.Run + "-" + name
	s.procs.addRun(run)
	return s.Start(name, append(append(s.joinArgs(), "--name", name, "--run-dir", run), extra...)...)
}

func (s *Stack) joinArgs() []string {
	return []string{"host", "--service", s.Hosts, "--ca", s.Data + "/ca.pem", "--token-file", s.Data + "/host.token"}
}

func (s *Stack) serviceArgs() []string {
	return []string{"--data-dir", s.Data, "--http", s.HTTP, "--flight", s.Flight, "--hosts", s.Hosts, "--socket", s.Socket}
}

func (s *Stack) hostArgs() []string {
	return []string{"--name", "h1", "--run-dir", s.Run}
}

// Start starts a program of the installation under a name.
func (s *Stack) Start(name string, args ...string) *Proc {
	s.t.Helper()
	p := &Proc{Cmd: s.Command(args...), Log: &Log{}, done: make(chan struct{})}
	if old := s.procs.get(name); old != nil {
		p.Log = old.Log
	}
	p.Cmd.Stdout, p.Cmd.Stderr = p.Log, p.Log
	launch := s.Launch
	if launch == nil {
		launch = func(_ string, cmd *exec.Cmd) error { return cmd.Start() }
	}
	if err := launch(name, p.Cmd); err != nil {
		s.t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		_ = p.Cmd.Wait()
		close(p.done)
	}()
	s.procs.put(name, p)
	return p
}

// Stop sends a signal and waits for the end.
func (s *Stack) Stop(name string, sig syscall.Signal) {
	s.t.Helper()
	p := s.procs.get(name)
	if p == nil {
		return
	}
	_ = p.Cmd.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(60 * time.Second):
		_ = p.Cmd.Process.Kill()
		<-p.done
		s.t.Errorf("%s did not end within 60 s of signal %v", name, sig)
	}
}

// Done is closed when the program has ended.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Command makes a command of the sluice program that speaks to this installation.
func (s *Stack) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.Bin, "sluice"), args...)
	cmd.Env = append(os.Environ(), "SLUICE_SOCKET="+s.Socket, "SLUICE_URL=", "SLUICE_TOKEN=")
	return cmd
}

// Result of a command.
type Result struct {
	Out, Err string
	Exit     int
}

// Sluice runs the command line and returns what it printed and its exit status.
func (s *Stack) Sluice(args ...string) Result {
	s.t.Helper()
	return s.SluiceEnv(nil, args...)
}

// SluiceEnv is Sluice with more environment and a bound of two minutes.
func (s *Stack) SluiceEnv(env []string, args ...string) Result {
	s.t.Helper()
	cmd := s.Command(args...)
	cmd.Env = append(cmd.Env, env...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		s.t.Fatalf("sluice %v: %v", args, err)
	}
	timer := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait()
	timer.Stop()
	return Result{Out: out.String(), Err: errOut.String(), Exit: cmd.ProcessState.ExitCode()}
}

// Must runs the command line, fails the test unless it succeeds, and returns what it
// printed on standard output.
func (s *Stack) Must(args ...string) string {
	s.t.Helper()
	r := s.Sluice(args...)
	if r.Exit != 0 {
		s.t.Fatalf("sluice %s: exit status %d\n%s%s", strings.Join(args, " "), r.Exit, r.Out, r.Err)
	}
	return r.Out
}

// Client returns an HTTP client on the installation's socket.
func (s *Stack) Client() *client.Client {
	s.t.Helper()
	c, err := client.New(client.Options{Socket: s.Socket})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

// Ready waits until the service answers and its host is connected.
func (s *Stack) Ready() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	c, err := client.New(client.Options{Socket: s.Socket})
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	if err := c.WaitReady(ctx); err != nil {
		for name, p := range s.procs.all() {
			s.t.Logf("log of %s:\n%s", name, tail(p.Log.String(), 8<<10))
		}
		s.t.Fatal(err)
	}
}

var tokenPattern = regexp.MustCompile(`sluice_[A-Za-z0-9_-]{40,}`)

// Token returns the administrator's token, as the first start showed it.
func (s *Stack) Token() string {
	s.t.Helper()
	s.procs.mu.Lock()
	defer s.procs.mu.Unlock()
	if s.procs.token != "" {
		return s.procs.token
	}
	for _, p := range s.procs.named {
		if t := tokenPattern.FindString(p.Log.String()); t != "" {
			s.procs.token = t
			return t
		}
	}
	s.t.Fatal("no start showed a token")
	return ""
}

// Apply applies a document.
func (s *Stack) Apply(yaml string) {
	s.t.Helper()
	file := filepath.Join(s.Dir, fmt.Sprintf("apply-%d.yaml", time.Now().UnixNano()))
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.Must("apply", "-f", file)
}

// Leftovers lists what exists on the machine because of this installation, found
// without its own help: namespaces, interfaces, tables, containers, cgroups, processes.
func (s *Stack) Leftovers() (out []string) {
	for _, run := range append(s.procs.moreRuns(), s.Run) {
		out = append(out, leftovers(run)...)
	}
	return out
}

func leftovers(run string) (out []string) {
	instance := Instance(run)
	grep := func(what string, text string) {
		for line := range strings.Lines(text) {
			if strings.Contains(line, instance) && !strings.HasSuffix(line, " (deleted)\n") { // of a zombie: nothing runs
				out = append(out, what+": "+strings.TrimSpace(line))
			}
		}
	}
	grep("namespace", command("ls", "/run/netns"))
	grep("link", command("ip", "-o", "link"))
	grep("table", command("nft", "list", "tables"))
	grep("mount", command("cat", "/proc/mounts"))
	grep("cgroup", command("sh", "-c", "find /sys/fs/cgroup -maxdepth 3 -type d -name '*sluice*'"))
	grep("process", processes())
	for _, pid := range splicers(run) {
		out = append(out, fmt.Sprintf("process: %d, which joins connections", pid))
	}
	if _, err := os.Stat(run); err == nil {
		if entries, _ := os.ReadDir(run); len(entries) > 0 {
			out = append(out, "run directory: "+run)
		}
	}
	return out
}

// Splicers are the processes that join the installation's connections.
func (s *Stack) Splicers() []int { return splicers(s.Run) }

func splicers(run string) (pids []int) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		if line, _ := os.ReadFile(path); strings.Contains(string(line), run+"/splice/") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// Instance is the prefix of the installation's names in the kernel.
func (s *Stack) Instance() string { return Instance(s.Run) }

func command(name string, args ...string) string {
	out, _ := exec.Command(name, args...).CombinedOutput()
	return string(out)
}

// processes lists the cgroups of every process that runs. One that has ended and that
// the machine's init has yet to reap does not count.
func processes() string {
	var out strings.Builder
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		stat, _ := os.ReadFile(dir + "/stat")
		if i := bytes.LastIndexByte(stat, ')'); i < 0 || bytes.HasPrefix(stat[i:], []byte(") Z")) {
			continue
		}
		groups, _ := os.ReadFile(dir + "/cgroup")
		for line := range strings.Lines(string(groups)) {
			out.WriteString(dir + ": " + line)
		}
	}
	return out.String()
}

// Proc returns the program that was started under a name, nil if none was.
func (s *Stack) Proc(name string) *Proc { return s.procs.get(name) }

// Race tells whether the tests were built with the race detector.
const Race = raceEnabled
