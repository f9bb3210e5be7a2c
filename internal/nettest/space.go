package nettest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// In runs f in the network namespace at a path, or where the process is if that is "".
func In(path string, f func() error) error {
	if path == "" {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread must not serve anyone else
		at, err := os.Open(path)
		if err == nil {
			err = unix.Setns(int(at.Fd()), unix.CLONE_NEWNET)
			at.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// JoinTUN joins two namespaces by TUN devices of one name, and a program that carries
// packets between them, as a VPN does.
func JoinTUN(t testing.TB, a, b, name string) {
	t.Helper()
	ends := [2]*os.File{openTUN(t, a, name), openTUN(t, b, name)}
	var work sync.WaitGroup
	for i := range ends {
		work.Go(func() {
			buf := make([]byte, 65536)
			for {
				k, err := ends[i].Read(buf)
				if err != nil {
					return
				}
				_, _ = ends[1-i].Write(buf[:k])
			}
		})
	}
	t.Cleanup(func() { ends[0].Close(); ends[1].Close(); work.Wait() })
}

func openTUN(t testing.TB, space, name string) (f *os.File) {
	t.Helper()
	err := In(space, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(name)
		if err == nil {
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		f = os.NewFile(uintptr(fd), filepath.Join(space, name))
		return err
	})
	if err != nil {
		t.Fatalf("make the TUN device %s: %v", name, err)
	}
	return f
}

// What differs from look to look: a device's index and its peer's, a bridge's timers.
var (
	ownIndex = regexp.MustCompile(`^\d+: ([^:@]+)(@\S+)?: `)
	timers   = regexp.MustCompile(`_timer +[0-9.]+`)
)

// Describe tells how a device of a namespace is: name, state, addresses, routes; without
// what the kernel makes itself, in its own time. Of a device that is not there it says so.
func Describe(space, dev string) (out []string) {
	for _, args := range [][]string{{"-d", "addr", "show", "dev", dev}, {"route", "show", "table", "all", "dev", dev}, {"-6", "route", "show", "dev", dev}} {
		var text []byte
		err := In(space, func() (err error) {
			text, err = exec.Command("ip", args...).Output()
			return err
		})
		if err != nil {
			out = append(out, fmt.Sprintf("ip %s: %v", strings.Join(args, " "), err))
		}
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			if strings.Contains(line, "fe80::") || strings.Contains(line, "valid_lft") || strings.HasPrefix(line, "multicast") || strings.HasPrefix(line, "local ") {
				continue
			}
			line, _, _ = strings.Cut(ownIndex.ReplaceAllString(line, "$1: "), "bridge_slave")
			out = append(out, timers.ReplaceAllString(line, "_timer"))
		}
	}
	return out
}
