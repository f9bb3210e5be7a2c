package main

import (
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
)

// facts is what a sandboxed process sees of its confinement; sandboxtest.Facts reads it.
type facts struct {
	UID, GID, PID, CPUs int
	Groups              []int
	Args, Env           []string
	Status              map[string]string // of /proc/self/status
	Mounts              []string          // mount point, options
	Root                []string
	Interfaces          []string
	Hostname, UIDMap    string
	Limits              map[string]uint64
	FDs                 []string
	Tries               map[string]string // what was tried → "" if it worked
}

func look() facts {
	f := facts{UID: os.Getuid(), GID: os.Getgid(), PID: os.Getpid(), CPUs: runtime.GOMAXPROCS(0),
		Args: os.Args, Env: os.Environ(), Status: status(), Limits: limits(), Tries: tries()}
	f.Groups, _ = os.Getgroups()
	f.Hostname, _ = os.Hostname()
	uidMap, _ := os.ReadFile("/proc/self/uid_map")
	f.UIDMap = string(uidMap)
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if w := strings.Fields(line); len(w) > 3 {
			f.Mounts = append(f.Mounts, w[1]+" "+w[3])
		}
	}
	f.Root, f.FDs = names("/"), names("/proc/self/fd")
	ifs, _ := net.Interfaces()
	for _, i := range ifs {
		f.Interfaces = append(f.Interfaces, i.Name)
	}
	return f
}

func names(dir string) (out []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func status() map[string]string {
	raw, _ := os.ReadFile("/proc/self/status")
	out := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			out[k] = strings.TrimSpace(v)
		}
	}
	return out
}

func limits() map[string]uint64 {
	out := map[string]uint64{}
	for name, which := range map[string]int{"nofile": syscall.RLIMIT_NOFILE, "core": syscall.RLIMIT_CORE, "fsize": syscall.RLIMIT_FSIZE} {
		var l syscall.Rlimit
		if syscall.Getrlimit(which, &l) == nil {
			out[name] = l.Max
		}
	}
	return out
}

func tries() map[string]string {
	out := map[string]string{}
	for name, try := range map[string]func() error{
		"write to /":            func() error { return os.WriteFile("/x", nil, 0o600) },
		"write to /dev":         func() error { return os.WriteFile("/dev/x", nil, 0o600) },
		"write to /proc/sys":    func() error { return os.WriteFile("/proc/sys/kernel/hostname", []byte("x"), 0o600) },
		"replace the program":   func() error { return os.Remove("/sluice-gateway") },
		"become root":           func() error { return syscall.Setuid(0) },
		"mount":                 func() error { return syscall.Mount("none", "/proc", "tmpfs", 0, "") },
		"make a user namespace": func() error { return syscall.Unshare(syscall.CLONE_NEWNET) },
		"make a device":         func() error { return syscall.Mknod("/dev/x", syscall.S_IFBLK, 0) },
		"raise a limit": func() error {
			return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 8192, Max: 8192})
		},
		"read /proc/kcore": func() error {
			f, err := os.Open("/proc/kcore")
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.Read(make([]byte, 1))
			return err
		},
		"raw socket": func() error {
			_, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP)
			return err
		},
		"read the CA certificates": func() error { _, err := os.ReadFile(os.Getenv("SSL_CERT_FILE")); return err },
	} {
		out[name] = ""
		if err := try(); err != nil {
			out[name] = err.Error()
		}
	}
	return out
}
