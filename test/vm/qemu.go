package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// program is QEMU's, in Debian's package qemu-system-x86.
const program = "qemu-system-x86_64"

// arguments describe the machine. The job's output goes to file descriptor 3.
func arguments(o Options) []string {
	cpu := "host,arch-capabilities=off" // which a machine that is virtual itself may show, and refuse to take
	if o.Accel == "tcg" {
		cpu = "max"
	}
	return []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none",
		"-machine", "q35,accel=" + o.Accel, "-cpu", cpu, "-smp", "2", "-m", "2G",
		"-kernel", o.Kernel.Image, "-initrd", initialFile(o),
		"-append", strings.TrimSpace("console=ttyS0 loglevel=5 panic=-1 oops=panic " + o.params),
		"-serial", "file:" + consoleFile(o),
		"-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-9p-pci,fsdev=root,mount_tag=" + RootTag,
		"-device", "virtio-serial-pci",
		"-chardev", "file,id=output,path=/proc/self/fd/3", "-device", "virtserialport,chardev=output,name=" + OutputPort,
		"-chardev", "file,id=result,path=" + resultFile(o), "-device", "virtserialport,chardev=result,name=" + ResultPort,
	}
}

// qemu runs the machine until it ends by itself or ctx does, and returns what the guest said
// of the job.
func qemu(ctx context.Context, o Options) (result string, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	var complaints strings.Builder
	cmd := exec.CommandContext(ctx, program, arguments(o)...)
	cmd.ExtraFiles, cmd.Stderr, cmd.WaitDelay = []*os.File{w}, &complaints, 5*time.Second
	// The machine ends with the test, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(o.Output, r)
		copied <- err
	}()
	ended := make(chan error)
	go func() {
		// The signal comes at the end of the thread that started the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		w.Close()
		if err == nil {
			err = cmd.Wait()
		}
		ended <- err
	}()
	if err = <-ended; err != nil {
		err = fmt.Errorf("%s: %w %s", program, err, complaints.String())
	}
	err = errors.Join(err, <-copied)
	text, readErr := os.ReadFile(resultFile(o))
	if readErr != nil && !os.IsNotExist(readErr) {
		err = errors.Join(err, readErr)
	}
	return string(text), err
}
