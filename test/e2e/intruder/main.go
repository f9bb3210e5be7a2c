// Command intruder is what the end-to-end tests run in place of a member, by the real
// host: it tells what it can see and do in there, and then waits, or takes all memory
// it can get. Nothing else may use it.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/gateway/confine"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// report is one line on standard error, which the host keeps with the member's bundle.
type report struct {
	UID, GID, PID int
	CPUs          int
	Args, Env     []string
	Status        string // of /proc/self/status
	Mounts        string
	UIDMap        string
	Root, Dev     []string
	Processes     []string
	Links         []string
	Boot          []string          // the fields that the boot document fills
	Tries         map[string]string // what was tried → "" if it worked
	Uplink        map[string]string // what was tried against the network of its uplink, if it has one
	Confined      map[string]string // the first once it is confined as a member confines itself
}

// greedy is the memory limit, in MiB, up to which the intruder takes memory instead of
// waiting.
const greedy = 64

func main() {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	doc, err := io.ReadAll(os.NewFile(3, "boot"))
	var boot memberapi.Boot
	if err != nil || json.Unmarshal(doc, &boot) != nil {
		fmt.Fprintln(os.Stderr, "no boot document:", err)
		os.Exit(97)
	}
	if boot.MemoryMiB <= greedy {
		grow()
	}
	if err := json.NewEncoder(os.Stderr).Encode(look(doc)); err != nil {
		os.Exit(97)
	}
	<-term
}

// grow takes memory and never gives it back.
func grow() {
	var keep [][]byte
	for range 4096 {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		keep = append(keep, b)
		time.Sleep(time.Millisecond)
	}
	runtime.KeepAlive(keep)
}

func look(boot []byte) report {
	r := report{UID: os.Getuid(), GID: os.Getgid(), PID: os.Getpid(), CPUs: runtime.GOMAXPROCS(0), Args: os.Args, Env: os.Environ()}
	r.Status, r.Mounts, r.UIDMap = text("/proc/self/status"), text("/proc/self/mounts"), text("/proc/self/uid_map")
	r.Root, r.Dev = names("/"), names("/dev")
	for _, n := range names("/proc") {
		if strings.Trim(n, "0123456789") == "" {
			r.Processes = append(r.Processes, n)
		}
	}
	links, _ := net.Interfaces()
	for _, l := range links {
		r.Links = append(r.Links, l.Name)
	}
	var fields map[string]any
	_ = json.Unmarshal(boot, &fields)
	for k := range fields {
		r.Boot = append(r.Boot, k)
	}
	r.Tries, r.Uplink = attempt(tries(), networkTries()), attempt(lanTries())
	if _, err := confine.Apply(confine.Options{AllowDegraded: true}); err != nil {
		return report{}
	}
	r.Confined = attempt(networkTries(), confinedTries())
	return r
}

// attempt tries everything at once: some of it waits for answers that never come.
func attempt(lists ...map[string]func() error) map[string]string {
	out := map[string]string{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, list := range lists {
		for what, try := range list {
			all.Go(func() {
				err := try()
				mu.Lock()
				defer mu.Unlock()
				out[what] = ""
				if err != nil {
					out[what] = err.Error()
				}
			})
		}
	}
	all.Wait()
	return out
}

func text(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}

func names(dir string) (out []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func tries() map[string]func() error {
	return map[string]func() error{
		"control: make a TCP socket":  func() error { return socket(unix.AF_INET, unix.SOCK_STREAM, 0) },
		"control: ask for the routes": func() error { return socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE) },

		"write to /":              func() error { return os.WriteFile("/x", []byte("x"), 0o600) },
		"write to /dev":           func() error { return os.WriteFile("/dev/x", []byte("x"), 0o600) },
		"write to /proc/sys":      func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600) },
		"write to /sys":           func() error { return os.WriteFile("/sys/x", []byte("x"), 0o600) },
		"replace the program":     func() error { return os.WriteFile("/sluice-gateway", []byte("x"), 0o700) },
		"remount / writable":      func() error { return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, "") },
		"mount a tmpfs":           func() error { return unix.Mount("none", "/etc", "tmpfs", 0, "") },
		"mount proc":              func() error { return unix.Mount("proc", "/proc", "proc", 0, "") },
		"unshare the network":     func() error { return unix.Unshare(unix.CLONE_NEWNET) },
		"unshare mounts":          func() error { return unix.Unshare(unix.CLONE_NEWNS) },
		"enter PID 1's network":   func() error { return setns("/proc/1/ns/user") },
		"trace a process":         func() error { return unix.PtraceSeize(1) },
		"become root":             func() error { return unix.Setuid(0) },
		"change root":             func() error { return unix.Chroot("/proc") },
		"make a device":           func() error { return unix.Mknod("/dev/sda", unix.S_IFBLK|0o600, 8<<8) },
		"raw socket":              func() error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP) },
		"packet socket":           func() error { return socket(unix.AF_PACKET, unix.SOCK_RAW, 0x0300) },
		"bring an interface down": func() error { return ifDown("eth0") },
		"read the kernel's log":   func() error { _, err := os.ReadFile("/proc/kmsg"); return err },
		"read the kernel's core":  func() error { return readByte("/proc/kcore") },
		"raise a limit":           func() error { return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}) },
		"load a kernel module":    func() error { return unix.FinitModule(0, "", 0) },
		"set the clock":           func() error { return unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{Sec: 1}) },
		"reboot":                  func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) },
	}
}

func socket(domain, kind, proto int) error {
	fd, err := unix.Socket(domain, kind, proto)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func setns(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Setns(int(f.Fd()), 0)
}

func readByte(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := f.Read(make([]byte, 1)); n == 0 {
		return fmt.Errorf("nothing to read: %w", err)
	}
	return nil
}

func ifDown(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(0)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
	}
	return errors.Join(err, unix.Close(fd))
}
