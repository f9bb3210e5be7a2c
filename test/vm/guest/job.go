package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/test/vm"
)

const (
	cgroupRoot  = "/sys/fs/cgroup"
	controllers = "+cpu +io +memory +pids"
)

// settle does what systemd and the package netbase would have done by now.
func settle() error {
	if err := unix.Sethostname([]byte("sluice-vm")); err != nil {
		return err
	}
	// Processes are in leaves only, and the controllers that services need are handed down.
	if err := join("init.scope", os.Getpid()); err != nil {
		return err
	}
	for _, dir := range []string{"", "system.slice"} {
		if err := os.MkdirAll(filepath.Join(cgroupRoot, dir), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(cgroupRoot, dir, "cgroup.subtree_control"), []byte(controllers), 0o644); err != nil {
			return fmt.Errorf("handing down cgroup controllers: %w", err)
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1024, Max: 524288}); err != nil {
		return err
	}
	if out, err := exec.Command("/usr/sbin/ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	return nil
}

func join(cgroup string, pid int) error {
	dir := filepath.Join(cgroupRoot, cgroup)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, pid), 0o644)
}

// runJob runs the job and, as a first process must, takes in everybody's orphans. The job
// runs in the cgroup of a service.
func runJob(j vm.Job) (int, error) {
	out, err := openPort(vm.OutputPort)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	const service = "system.slice/job.service"
	if err := os.MkdirAll(filepath.Join(cgroupRoot, service), 0o755); err != nil {
		return 0, err
	}
	group, err := os.Open(filepath.Join(cgroupRoot, service))
	if err != nil {
		return 0, err
	}
	defer group.Close()
	dir := j.Dir
	if dir == "" {
		dir = "/"
	}
	// No variable of the kernel's command line reaches the job.
	env := append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "LANG=C.UTF-8"}, j.Env...)
	pid, err := syscall.ForkExec(j.Program, append([]string{j.Program}, j.Args...), &syscall.ProcAttr{
		Dir: dir, Env: env, Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())},
	})
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w", j.Program, strings.Join(j.Args, " "), err)
	}
	return reap(pid)
}

func reap(job int) (int, error) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case pid == job && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == job:
			return status.ExitStatus(), nil
		}
	}
}
