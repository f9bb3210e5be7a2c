package confine

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// childEnv tells a child what to try.
type childEnv struct {
	Attempt       string
	Layers        string // "" for Apply, "landlock" for that layer alone, "none"
	CACerts       string
	AllowDegraded bool
	TCP, UDP, TLS string
	Dir           string
}

type childResult struct {
	ApplyError string
	Report     Report
	Error      string
	Refused    bool // by EPERM or EACCES
}

// attempt is one thing that a confined process tries.
type attempt struct {
	works  bool
	anyway bool // this machine refuses it to everybody
	do     func(childEnv) error
}

func attempts() map[string]attempt {
	return map[string]attempt{
		"TCP client":         {works: true, do: func(e childEnv) error { return echo("tcp4", e.TCP) }},
		"TCP client, any IP": {works: true, do: func(e childEnv) error { return echo("tcp", e.TCP) }},
		"DNS over UDP":       {works: true, do: lookup},
		"TLS client":         {works: true, do: get},
		"load":               {works: true, do: load},
		"read the CA bundle": {works: true, do: func(e childEnv) error { _, err := os.ReadFile(e.CACerts); return err }},
		"splice":             {works: true, do: splice},

		"listen":           {do: func(childEnv) error { return listen(unix.IPPROTO_TCP) }},
		"listen with net":  {do: func(childEnv) error { return closed(net.Listen("tcp4", "127.0.0.1:0")) }},
		"listen on UDP":    {do: func(childEnv) error { return closed(net.ListenPacket("udp4", "127.0.0.1:0")) }},
		"listen on MPTCP":  {do: func(childEnv) error { return listen(262) }},
		"bind TCP":         {do: bindTCP},
		"accept":           {do: raw(unix.SYS_ACCEPT4, 0, 0, 0)},
		"exec":             {do: func(childEnv) error { return exec.Command("/bin/true").Run() }},
		"execve":           {do: execve},
		"fork":             {do: fork},
		"open /etc/passwd": {do: func(childEnv) error { return closed(os.Open("/etc/passwd")) }},
		"write a file":     {do: func(e childEnv) error { return closed(os.Create(filepath.Join(e.Dir, "x"))) }},
		"list a directory": {do: func(e childEnv) error { _, err := os.ReadDir(e.Dir); return err }},
		"raw socket":       {do: socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)},
		"packet socket":    {do: socket(unix.AF_PACKET, unix.SOCK_RAW, 0)},
		"unix socket":      {do: socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)},
		"netlink socket":   {do: socket(unix.AF_NETLINK, unix.SOCK_RAW, 0)},
		"IPv6 socket":      {do: socket(unix.AF_INET6, unix.SOCK_STREAM, 0)},
		"vsock":            {do: socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)},
		"socketpair":       {do: func(childEnv) error { _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err }},
		"ptrace":           {do: raw(unix.SYS_PTRACE, unix.PTRACE_CONT, ^uintptr(0), 0)},
		"new userns":       {do: raw(unix.SYS_UNSHARE, unix.CLONE_NEWUTS, 0, 0)},
		"setns":            {do: raw(unix.SYS_SETNS, ^uintptr(0), 0, 0)},
		"mount":            {do: func(e childEnv) error { return mountTmpfs(e.Dir) }},
		"bpf":              {do: raw(unix.SYS_BPF, ^uintptr(0), 0, 0)},
		"keyctl":           {do: raw(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, uintptr(0xfffffffe), 0)},
		"io_uring":         {do: raw(unix.SYS_IO_URING_SETUP, 0, 0, 0)},
		"userfaultfd":      {do: raw(unix.SYS_USERFAULTFD, ^uintptr(0), 0, 0)},
		"process_vm_readv": {do: raw(unix.SYS_PROCESS_VM_READV, 0, 0, 0)},
		"open by handle":   {do: raw(unix.SYS_OPEN_BY_HANDLE_AT, ^uintptr(0), 0, 0)},
		"perf_event_open":  {do: raw(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0)},
		"memfd_create":     {do: func(childEnv) error { _, err := unix.MemfdCreate("x", 0); return err }},
		"kill":             {do: raw(unix.SYS_KILL, uintptr(os.Getpid()), 0, 0)},
		"signal a parent":  {do: raw(unix.SYS_TGKILL, uintptr(os.Getppid()), uintptr(os.Getppid()), 0)},
		"core dumps again": {do: raw(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1, 0)},
		"raise a limit":    {do: raiseLimit},
		"executable memory": {do: func(childEnv) error {
			_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
			return err
		}},
		"ioctl": {do: func(childEnv) error { _, err := unix.IoctlGetInt(0, 0x541b); return err }},
	}
}

// childMain never returns.
func childMain(rawEnv string) {
	var env childEnv
	if err := json.Unmarshal([]byte(rawEnv), &env); err != nil {
		panic(err)
	}
	var res childResult
	busyThreads := startThreads()
	var err error
	switch env.Layers {
	case "":
		res.Report, err = Apply(Options{CACerts: env.CACerts, AllowDegraded: env.AllowDegraded})
	case "landlock":
		_, err = restrictFiles(env.CACerts)
	}
	if err != nil {
		res.ApplyError = err.Error()
	}
	// The attempt runs on a thread that existed before: the filter must be on all of them.
	err = busyThreads.do(func() error { return attempts()[env.Attempt].do(env) })
	if err != nil {
		res.Error = err.Error()
		res.Refused = errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
	}
	if err := json.NewEncoder(os.Stdout).Encode(res); err != nil {
		panic(err)
	}
	os.Exit(0)
}

// threads are goroutines locked to threads of their own, made before Apply.
type threads struct{ work chan func() }

func startThreads() threads {
	t := threads{make(chan func())}
	var up sync.WaitGroup
	for range 4 {
		up.Add(1)
		go func() {
			runtime.LockOSThread()
			up.Done()
			for f := range t.work {
				f()
			}
		}()
	}
	up.Wait()
	return t
}

func (t threads) do(f func() error) error {
	done := make(chan error, 1)
	t.work <- func() { done <- f() }
	return <-done
}

func raw(nr, a, b, c uintptr) func(childEnv) error {
	return func(childEnv) error {
		if _, _, errno := unix.RawSyscall(nr, a, b, c); errno != 0 {
			return errno
		}
		return nil
	}
}

func closed(c io.Closer, err error) error {
	if err != nil {
		return err
	}
	return c.Close()
}

func socket(domain, typ, proto int) func(childEnv) error {
	return func(childEnv) error {
		fd, err := unix.Socket(domain, typ, proto)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}
}

// listen needs no bind: the kernel picks a port.
func listen(proto int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, proto)
	if err != nil {
		return err
	}
	return unix.Listen(fd, 1)
}

func bindTCP(childEnv) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
}

func execve(childEnv) error {
	return unix.Exec("/nonexistent", []string{"x"}, nil)
}

func fork(childEnv) error {
	_, err := syscall.ForkExec("/bin/true", []string{"true"}, nil)
	return err
}

func mountTmpfs(dir string) error {
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		return err
	}
	return unix.Unmount(dir, 0)
}

func raiseLimit(childEnv) error {
	var lim unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &lim); err != nil {
		return fmt.Errorf("reading a limit: %s", err)
	}
	lim.Cur = lim.Max
	return unix.Prlimit(0, unix.RLIMIT_NOFILE, &lim, nil)
}

func echo(network, addr string) error {
	c, err := net.DialTimeout(network, addr, 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != "ping" {
		return fmt.Errorf("echo returned %q", got)
	}
	return nil
}

// lookup uses Go's own resolver, as a member does.
func lookup(e childEnv) error {
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", e.UDP)
	}}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ips, err := r.LookupIP(ctx, "ip4", "db.corp.internal.")
	if err != nil {
		return err
	}
	if len(ips) != 1 || ips[0].String() != "10.20.1.4" {
		return fmt.Errorf("looked up %v", ips)
	}
	return nil
}

func get(e childEnv) error {
	// No pool given: the certificates come from the CA bundle, through SSL_CERT_FILE.
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(e.TLS)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || len(body) != 1<<18 {
		return fmt.Errorf("%d bytes: %v", len(body), err)
	}
	return nil
}

// load makes threads, garbage and connections at once.
func load(e childEnv) error {
	errc := make(chan error, 48)
	var wg sync.WaitGroup
	for i := range cap(errc) {
		wg.Go(func() {
			if i%8 == 0 {
				runtime.LockOSThread() // a thread of its own, ended with the goroutine
			}
			var keep [][]byte
			for j := range 4 {
				keep = append(keep, make([]byte, 1<<20))
				if err := []func() error{
					func() error { return echo("tcp4", e.TCP) },
					func() error { return lookup(e) },
					func() error { return get(e) },
				}[(i+j)%3](); err != nil {
					errc <- err
					return
				}
				runtime.GC()
			}
			runtime.KeepAlive(keep)
		})
	}
	wg.Wait()
	close(errc)
	return <-errc
}

// splice copies between two TCP connections in the kernel.
func splice(e childEnv) error {
	a, err := net.Dial("tcp4", e.TCP)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := net.Dial("tcp4", e.TCP)
	if err != nil {
		return err
	}
	defer b.Close()
	if _, err := a.Write(make([]byte, 1<<16)); err != nil {
		return err
	}
	n, err := b.(*net.TCPConn).ReadFrom(io.LimitReader(a, 1<<16))
	if n != 1<<16 {
		return fmt.Errorf("spliced %d bytes: %v", n, err)
	}
	return nil
}

type servers struct{ env childEnv }

// startServers runs what the children talk to.
func startServers(t *testing.T) servers {
	t.Helper()
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	t.Cleanup(func() { tcp.Close() })
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 1<<18))
	}))
	web.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	web.StartTLS()
	t.Cleanup(web.Close)
	dir := t.TempDir()
	return servers{childEnv{
		TCP: tcp.Addr().String(), TLS: web.URL, UDP: serveDNS(t), Dir: dir,
		CACerts: writeCert(t, dir, web.Certificate()),
	}}
}

func serveDNS(t *testing.T) string {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		if rr, err := dns.NewRR("db.corp.internal. 60 IN A 10.20.1.4"); err == nil && q.Question[0].Qtype == dns.TypeA {
			m.Answer = append(m.Answer, rr)
		}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = srv.ActivateAndServe() }()
	t.Cleanup(func() { _ = srv.Shutdown() })
	return pc.LocalAddr().String()
}

func writeCert(t *testing.T, dir string, cert *x509.Certificate) string {
	t.Helper()
	path := filepath.Join(dir, "ca.crt")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	if err := os.WriteFile(path, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
