// Command payload is what the runtimes' tests run in a sandbox in place of a member: it
// does what its boot data says. Nothing else may use it.
package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/sluice-gateway/sluice/internal/gateway/confine"
)

// command is sandboxtest.Command; that package is not imported for the sake of size.
type command struct {
	Do      string
	AfterMS int
	Code    int
	MiB     int
}

func main() {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	boot, err := io.ReadAll(os.NewFile(3, "boot"))
	if err != nil {
		failf("read fd 3: %v", err)
	}
	fmt.Printf("boot %x\n", sha256.Sum256(boot))
	var c command
	if err := json.Unmarshal(boot, &c); err != nil {
		failf("boot data: %v", err)
	}
	select {
	case <-time.After(time.Duration(c.AfterMS) * time.Millisecond):
		os.Exit(do(c, term))
	case <-term:
		os.Exit(0)
	}
}

func failf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(97)
}

func do(c command, term chan os.Signal) int {
	switch c.Do {
	case "sleep":
		<-term
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		time.Sleep(time.Hour)
	case "exit":
	case "allocate":
		hold(c.MiB, term)
	case "confine":
		confined()
	case "spin":
		spin(term)
	case "spam":
		line := make([]byte, 64<<10)
		for i := range line {
			line[i] = 'x'
		}
		line[len(line)-1] = '\n'
		for range c.MiB * 16 {
			os.Stdout.Write(line) //nolint:errcheck // the log may be full; that is the test
		}
		<-term
	case "report":
		if err := json.NewEncoder(os.Stdout).Encode(look()); err != nil {
			return 97
		}
	default:
		failf("don't know how to %q", c.Do)
	}
	return c.Code
}

// confined confines the process and goes on as a member would: threads, memory, files.
func confined() {
	ca := os.Getenv("SSL_CERT_FILE")
	r, err := confine.Apply(confine.Options{CACerts: ca})
	if err != nil {
		failf("confine: %v", err)
	}
	for range 8 {
		go func() { runtime.LockOSThread(); runtime.GC() }()
	}
	runtime.GC()
	if _, err := os.ReadFile(ca); err != nil {
		failf("confined: %v", err)
	}
	if _, err := os.ReadFile("/proc/self/status"); err == nil {
		failf("confined, but /proc can be read")
	}
	fmt.Println("confined:", r.Seccomp, r.LandlockABI > 0)
}

// hold touches memory and keeps it.
func hold(mib int, term chan os.Signal) {
	var keep [][]byte
	for range mib {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		keep = append(keep, b)
	}
	<-term
	runtime.KeepAlive(keep)
}

func spin(term chan os.Signal) {
	for range 4 {
		go func() {
			for { //nolint:revive,staticcheck // it is to spin
			}
		}()
	}
	<-term
}
