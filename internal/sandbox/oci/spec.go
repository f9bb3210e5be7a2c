package oci

import (
	"fmt"
	"hash/fnv"
	"math"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/sandbox"
)

const (
	memberID = 65532 // the member's user and group inside its user namespace
	maxPIDs  = 256   // threads of one member

	// Mapped IDs begin where nothing else on a Linux machine takes them from: above the
	// ranges of subuid and systemd-nspawn. Each sandbox has a pair.
	idBase = 0x70000000
	idSpan = 1 << 26

	programPath = "/sluice-gateway"
	caPath      = "/etc/ssl/certs/ca-certificates.crt"
)

// buildSpec describes a sandbox to the runtime. Nothing in it is secret.
func buildSpec(s sandbox.Spec, rootfs, cgroup string) *specs.Spec {
	return &specs.Spec{
		Version:  "1.0.2",
		Hostname: "member",
		Root:     &specs.Root{Path: rootfs, Readonly: true},
		Process: &specs.Process{
			User: specs.User{UID: memberID, GID: memberID},
			Args: []string{programPath}, Cwd: "/", Env: environment(s.Size),
			Capabilities: &specs.LinuxCapabilities{}, NoNewPrivileges: true, Rlimits: rlimits(),
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
				Options: []string{"nosuid", "noexec", "mode=755", "size=64k", "ro"}},
		},
		Linux: &specs.Linux{
			UIDMappings: idMappings(s.ID), GIDMappings: idMappings(s.ID),
			CgroupsPath: cgroup, Resources: resources(s.Size), Namespaces: namespaces(s.NetNS),
			MaskedPaths: []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
				"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Seccomp:       sockets(),
		},
	}
}

// environment tells the Go runtime about limits that it can't see from inside: without
// /sys/fs/cgroup it would take every CPU, and it never derives a memory limit.
func environment(size core.MemberSize) []string {
	return []string{
		fmt.Sprintf("GOMAXPROCS=%d", int(math.Ceil(size.CPUs))),
		fmt.Sprintf("GOMEMLIMIT=%d", memoryBytes(size)/10*8),
		"GOTRACEBACK=single",
		"SSL_CERT_FILE=" + caPath,
	}
}

func memoryBytes(size core.MemberSize) int64 { return size.MemoryMiB << 20 }

// rlimits only lowers limits: raising one needs a capability that root may lack.
func rlimits() []specs.POSIXRlimit {
	limit := func(name string, resource int, want uint64) specs.POSIXRlimit {
		var now unix.Rlimit
		if err := unix.Getrlimit(resource, &now); err == nil {
			want = min(want, now.Max)
		}
		return specs.POSIXRlimit{Type: name, Hard: want, Soft: want}
	}
	return []specs.POSIXRlimit{
		limit("RLIMIT_NOFILE", unix.RLIMIT_NOFILE, 4096),
		limit("RLIMIT_CORE", unix.RLIMIT_CORE, 0),
		limit("RLIMIT_FSIZE", unix.RLIMIT_FSIZE, hardLog),
	}
}

func resources(size core.MemberSize) *specs.LinuxResources {
	memory, pids := memoryBytes(size), int64(maxPIDs)
	quota, period := cpuQuota(size)
	return &specs.LinuxResources{
		// Swap counts memory and swap together: equal means no swap.
		Memory: &specs.LinuxMemory{Limit: &memory, Swap: &memory},
		CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period},
		Pids:   &specs.LinuxPids{Limit: &pids},
	}
}

// cpuQuota is how many microseconds of a period a member may use.
func cpuQuota(size core.MemberSize) (quota int64, period uint64) {
	period = 100_000
	return max(int64(math.Round(size.CPUs*float64(period))), 1000), period // the kernel's least
}

func namespaces(netns string) []specs.LinuxNamespace {
	return []specs.LinuxNamespace{
		{Type: specs.UserNamespace}, {Type: specs.PIDNamespace}, {Type: specs.MountNamespace},
		{Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace},
		{Type: specs.NetworkNamespace, Path: netns},
	}
}

// idMappings maps the sandbox's root and its member, and nobody else. A hash may give
// two sandboxes one pair; other namespaces part them all the same.
func idMappings(id string) []specs.LinuxIDMapping {
	h := fnv.New32a()
	h.Write([]byte(id)) // a hash does not fail
	base := uint32(idBase) + h.Sum32()%idSpan*2
	return []specs.LinuxIDMapping{
		{ContainerID: 0, HostID: base, Size: 1},
		{ContainerID: memberID, HostID: base + 1, Size: 1},
	}
}

// rootfsPath is absolute, as runtimes take a relative one from the bundle.
func (r *rootfs) path(name string) string { return filepath.Join(r.dir, name) }

// sockets denies what network namespaces do not confine. Sockets of the families past
// netlink reach the machine, its hypervisor or its kernel's drivers (VSOCK, ALG, XDP, ...)
// from any namespace, and io_uring opens sockets past every filter. It holds whatever runs
// in the member's place; the member's own filter, which is much narrower, comes on top.
func sockets() *specs.LinuxSeccomp {
	denied := uint(unix.EPERM)
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"io_uring_setup"}, Action: specs.ActErrno, ErrnoRet: &denied},
			{Names: []string{"socket"}, Action: specs.ActErrno, ErrnoRet: &denied,
				Args: []specs.LinuxSeccompArg{{Index: 0, Value: unix.AF_NETLINK, Op: specs.OpGreaterThan}}},
		},
	}
}
