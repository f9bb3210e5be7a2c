package splice

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
)

// HostFD is the descriptor at which a started process finds its host.
const HostFD = 3

// Command returns a Start that runs a program in a session of its own, so that it
// outlives the host. The program gets args and the socket's path, and calls Serve with
// HostFD. What it logs goes to the end of the file log.
func Command(program, log string, args ...string) func(host *os.File, path string) error {
	return func(host *os.File, path string) error {
		out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer out.Close()
		cmd := exec.Command(program, append(args, path)...)
		cmd.Dir = "/"
		cmd.Stdout, cmd.Stderr = out, out
		cmd.ExtraFiles = []*os.File{host}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			return err
		}
		go func() { _ = cmd.Wait() }() // takes its status when it ends, which may be long after the host's own end
		return nil
	}
}

// Local returns a Splicer that does its work in this process: for a program that need
// not survive a restart of its own, and for tests. Close ends its pairs.
func Local(log *slog.Logger) *Splicer {
	var s *Splicer
	s = New(Options{
		Dir: os.DevNull, Version: "local", Logger: log,
		Start: func(host *os.File, _ string) error {
			fd, err := syscall.Dup(int(host.Fd()))
			if err != nil {
				return fmt.Errorf("dup: %w", err)
			}
			mine := os.NewFile(uintptr(fd), "splicer")
			s.readers.Go(func() {
				if err := Serve(ServeOptions{Host: mine, Version: "local", Logger: log, Shared: true}); err != nil {
					log.Error("splice", "error", err)
				}
			})
			return nil
		},
	})
	return s
}
