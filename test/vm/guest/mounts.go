package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/test/vm"
)

const newRoot = "/root"

// mount is one mount; its folder is made if it is missing.
type mount struct {
	kind, what, where string
	flags             uintptr
	options           string
}

const strict = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// early is what finding the root file system takes.
var early = []mount{
	{"proc", "proc", "/proc", strict, ""},
	{"sysfs", "sysfs", "/sys", strict, ""},
	{"devtmpfs", "devtmpfs", "/dev", unix.MS_NOSUID, "mode=755"},
}

// layers are the machine's file system, and above it what the guest writes, in memory.
var layers = []mount{
	{"9p", vm.RootTag, "/lower", unix.MS_RDONLY, "trans=virtio,version=9p2000.L,msize=524288,cache=loose"},
	{"tmpfs", "tmpfs", "/layer", 0, "mode=755"},
	{"", "", "/layer/upper", 0, ""},
	{"", "", "/layer/work", 0, ""},
	{"overlay", "overlay", newRoot, 0, "lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work"},
}

// late is what a Debian host has mounted, cgroups as systemd mounts them.
var late = []mount{
	{"proc", "proc", "/proc", strict, ""},
	{"sysfs", "sysfs", "/sys", strict, ""},
	{"cgroup2", "cgroup2", "/sys/fs/cgroup", strict, "nsdelegate,memory_recursiveprot"},
	{"bpf", "bpf", "/sys/fs/bpf", strict, "mode=700"},
	{"devtmpfs", "devtmpfs", "/dev", unix.MS_NOSUID, "mode=755"},
	{"devpts", "devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=000"},
	{"tmpfs", "tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"mqueue", "mqueue", "/dev/mqueue", strict, ""},
	{"tmpfs", "tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	{"tmpfs", "tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"tmpfs", "tmpfs", "/var/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
}

func mountAll(root string, list []mount) error {
	for _, m := range list {
		where := filepath.Join("/", root, m.where)
		if err := os.MkdirAll(where, 0o755); err != nil {
			return err
		}
		if m.kind == "" {
			continue
		}
		if err := unix.Mount(m.what, where, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mounting %s (%s) on %s: %w", m.what, m.kind, where, err)
		}
	}
	return nil
}

// bindFolders shows the kernel's modules and the job's folder where they belong.
func bindFolders(b vm.Boot) error {
	for where, what := range map[string]string{"/usr/lib/modules": b.Modules, vm.Shared: b.Job.Share} {
		if what == "" {
			continue
		}
		at := filepath.Join(newRoot, where)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(filepath.Join("/lower", what), at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("showing %s of the machine as %s: %w", what, where, err)
		}
	}
	return nil
}

// enter makes the new root the root, for the kernel's own threads too.
func enter() error {
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the new root to /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "") // as systemd has it
}
