// Command guest is the first process of a virtual machine of package vm: it mounts what a
// Debian host has mounted, runs one job, says how that ended, and powers off.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/test/vm"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the first process of a virtual machine, and runs nowhere else")
		os.Exit(2)
	}
	status, err := boot()
	say(status, err)
	unix.Sync()
	err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	panic(err) // which ends the machine as well
}

// boot returns the job's exit status.
func boot() (int, error) {
	raw, err := os.ReadFile(vm.BootFile)
	if err != nil {
		return 0, err
	}
	var b vm.Boot
	if err := json.Unmarshal(raw, &b); err != nil {
		return 0, err
	}
	for _, step := range []func() error{
		func() error { return mountAll("", early) },
		loadModules,
		func() error { return mountAll("", layers) },
		func() error { return bindFolders(b) },
		func() error { return mountAll(newRoot, late) },
		enter,
		settle,
	} {
		if err := step(); err != nil {
			return 0, err
		}
	}
	return runJob(b.Job)
}

// say tells how the job ended, on the console too if nobody hears it elsewhere.
func say(status int, err error) {
	text := fmt.Sprintf("%s%d\n", vm.ResultExit, status)
	if err != nil {
		text = fmt.Sprintf("%s: %v\n", vm.ResultError, err)
		fmt.Print("guest: ", text)
	}
	port, err := openPort(vm.ResultPort)
	if err != nil {
		fmt.Println("guest:", err)
		return
	}
	defer port.Close()
	if _, err := port.WriteString(text); err != nil {
		fmt.Println("guest:", err)
	}
}

// loadModules loads those of the initial file system, in the order of their names.
func loadModules() error {
	files, err := filepath.Glob(vm.ModuleDir + "/*")
	if err != nil {
		return err
	}
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("loading module %s: %w", filepath.Base(path), err)
		}
	}
	return nil
}

// openPort finds a port to the host by its name. The driver may take a moment.
func openPort(name string) (*os.File, error) {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		ports, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, path := range ports {
			if have, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(have)) == name {
				if f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(path)), os.O_WRONLY, 0); err == nil {
					return f, nil
				}
			}
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("the machine has no port %q to the host", name)
		}
	}
}
