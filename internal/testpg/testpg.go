// Package testpg starts real PostgreSQL 15 servers for tests, from Debian's packages.
//
// It owns the server's directory, port, users and certificates, and takes all of it
// away again: at the end of the test, or, through a watching shell, when the test
// binary dies. It is imported by tests and benchmarks only. Start gives a server of
// one's own; Shared gives a new database in a server that the whole test binary shares,
// which is faster.
package testpg

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-gateway/sluice/internal/testport"
)

const binDir = "/usr/lib/postgresql/15/bin"

// startTimeout bounds each wait for a server to come up or to go away.
const startTimeout = 90 * time.Second

// TB is what a server needs of the test, or of the program, that uses it. A testing.TB
// is one.
type TB interface {
	Helper()
	Cleanup(f func())
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// Server is a database in a running server, with a user that owns it.
type Server struct {
	Host     string // 127.0.0.1
	Port     int
	Database string
	User     string // may sign in with Password over TCP (SCRAM); owns Database
	Password string
	CA       string // PEM of the authority that signed the server's certificate, "" without TLS

	inst *instance
}

// An Option changes what Start makes.
type Option func(*settings)

type settings struct {
	conf  []string
	netns string
	tls   []string // names in the certificate; nil: no TLS
	hba   []string
	users map[string]string
}

// WithTLS makes the server offer TLS with a certificate for these names and addresses,
// signed by an authority of its own: see Server.CA.
func WithTLS(names ...string) Option {
	return func(s *settings) { s.tls = append(s.tls, names...) }
}

// WithSetting sets a server parameter, as in postgresql.conf.
func WithSetting(name, value string) Option {
	return func(s *settings) {
		s.conf = append(s.conf, fmt.Sprintf("%s = '%s'", name, strings.ReplaceAll(value, "'", "''")))
	}
}

// WithUser adds a user that may sign in with a password.
func WithUser(name, password string) Option {
	return func(s *settings) { s.users[name] = password }
}

// WithHBA puts a line in front of pg_hba.conf.
func WithHBA(line string) Option {
	return func(s *settings) { s.hba = append(s.hba, line) }
}

// WithNetNS runs the server in the network namespace with this path, where it listens on
// every address. Tests go on reaching it by its Unix socket.
func WithNetNS(path string) Option {
	return func(s *settings) {
		s.netns = path
		s.conf = append(s.conf, "listen_addresses = '*'")
	}
}

// Start starts a server and stops it at the end of the test.
func Start(t TB, opts ...Option) *Server {
	t.Helper()
	inst, err := newInstance(opts)
	if err != nil {
		t.Fatalf("testpg: %v", err)
	}
	t.Cleanup(inst.remove)
	s := inst.server("app")
	s.createDatabase(t)
	return s
}

// ConnString returns a connection string for User. TLS is on where the server has it.
func (s *Server) ConnString() string {
	mode := "disable"
	if s.CA != "" {
		mode = "require"
	}
	return fmt.Sprintf("host=%s port=%d dbname=%s user=%s password=%s sslmode=%s",
		s.Host, s.Port, s.Database, s.User, s.Password, mode)
}

// Stop kills the server at once, as a crash would. Restart brings it back.
func (s *Server) Stop(t TB) {
	t.Helper()
	if s.inst.shared {
		t.Fatal("testpg: the shared server must not be stopped; use Start")
	}
	if err := s.inst.stop(); err != nil {
		t.Fatalf("testpg: stop: %v", err)
	}
}

// Restart stops the server if it runs, and starts it again on the same port.
func (s *Server) Restart(t TB) {
	t.Helper()
	s.Stop(t)
	if err := s.inst.start(); err != nil {
		t.Fatalf("testpg: restart: %v", err)
	}
}

// instance is one server process with its directory.
type instance struct {
	dir    string
	port   int
	cred   *syscall.Credential // nil unless the test runs as root
	ca     string
	users  map[string]string
	netns  string // path of the network namespace that it runs in, "" for the test's
	shared bool
	watch  *os.File // the watching shell removes everything once this closes

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
}

func newInstance(opts []Option) (_ *instance, err error) {
	set := &settings{users: map[string]string{"app": "app-secret"}}
	for _, o := range opts {
		o(set)
	}
	if _, err := os.Stat(filepath.Join(binDir, "postgres")); err != nil {
		return nil, fmt.Errorf("PostgreSQL 15 is not installed: apt-get install postgresql")
	}
	inst := &instance{users: set.users, netns: set.netns}
	if inst.cred, err = credential(); err != nil {
		return nil, err
	}
	if inst.dir, err = os.MkdirTemp("", "sluice-testpg-"); err != nil {
		return nil, err
	}
	if err := inst.prepare(set); err != nil {
		inst.remove()
		return nil, err
	}
	return inst, nil
}

// credential is the user that the server runs as: it refuses to run as root.
func credential() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("%w: apt-get install postgresql", err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

func (i *instance) prepare(set *settings) error {
	if err := i.own(i.dir); err != nil {
		return err
	}
	if err := i.startWatch(); err != nil {
		return err
	}
	out, err := i.command("initdb", "-D", i.data(), "-U", "postgres", "-A", "trust",
		"--no-sync", "--locale=C.UTF-8", "--encoding=UTF8").CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	if err := i.configure(set); err != nil {
		return err
	}
	if err := i.startOnFreePort(); err != nil {
		return err
	}
	return i.createUsers()
}

// startOnFreePort retries: another process may take the port between choice and use.
func (i *instance) startOnFreePort() (err error) {
	for range 5 {
		if i.port, err = testport.Free(); err != nil {
			return err
		}
		if err = i.start(); err == nil {
			return nil
		}
	}
	return err
}

func (i *instance) configure(set *settings) error {
	conf := []string{
		"listen_addresses = '127.0.0.1'", "unix_socket_directories = '" + i.dir + "'",
		"fsync = off", "full_page_writes = off", "autovacuum = off",
		"shared_buffers = '64MB'", "max_connections = 100", "password_encryption = 'scram-sha-256'",
		"logging_collector = off", "jit = off", "max_wal_size = '1GB'",
	}
	if set.tls != nil {
		if err := i.writeCertificate(set.tls); err != nil {
			return err
		}
		conf = append(conf, "ssl = on")
	}
	conf = append(conf, set.conf...)
	hba := append(slices.Clone(set.hba), "local all postgres trust", "host all all 0.0.0.0/0 scram-sha-256")
	if err := i.write("pg_hba.conf", strings.Join(hba, "\n")+"\n"); err != nil {
		return err
	}
	return i.write("postgresql.auto.conf", strings.Join(conf, "\n")+"\n")
}

func (i *instance) start() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	log, err := os.OpenFile(i.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := i.command("postgres", "-D", i.data(), "-p", strconv.Itoa(i.port))
	cmd.Stdout, cmd.Stderr = log, log
	if err := i.launch(cmd); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	i.cmd, i.done = cmd, done
	return i.waitReady()
}

// waitReady asks until the server answers, since listening comes before being ready.
func (i *instance) waitReady() error {
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); {
		select {
		case <-i.done:
			return fmt.Errorf("postgres did not start:\n%s", i.logTail())
		case <-time.After(20 * time.Millisecond):
		}
		if _, err := i.exec("postgres", "select 1"); err == nil {
			return nil
		}
	}
	return fmt.Errorf("postgres was not ready after %v:\n%s", startTimeout, i.logTail())
}

func (i *instance) stop() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.cmd == nil {
		return nil
	}
	_ = i.cmd.Process.Signal(syscall.SIGQUIT) // "immediate shutdown"
	select {
	case <-i.done:
	case <-time.After(startTimeout):
		return fmt.Errorf("postgres still runs %v after SIGQUIT", startTimeout)
	}
	i.cmd = nil
	return nil
}

func (i *instance) remove() {
	_ = i.stop()
	_ = os.RemoveAll(i.dir)
	if i.watch != nil {
		_ = i.watch.Close()
	}
}

func (i *instance) server(db string) *Server {
	return &Server{
		Host: "127.0.0.1", Port: i.port, Database: db,
		User: "app", Password: i.users["app"], CA: i.ca, inst: i,
	}
}
