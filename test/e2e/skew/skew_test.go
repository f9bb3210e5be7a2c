package skew

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"
)

// The process's first thread belongs to the main goroutine: see become.
func init() { runtime.LockOSThread() } //nolint:gochecknoinits // main runs too late

// roleEnv makes this test binary one of the programs below.
const roleEnv = "SLUICE_TEST_SKEW_ROLE"

func TestMain(m *testing.M) {
	Main()
	switch os.Getenv(roleEnv) {
	case "clock":
		tellTimes()
	case "parent":
		startClock()
	default:
		os.Exit(m.Run())
	}
}

// tellTimes answers each line with the time, and with how long it has run by the monotonic
// clock.
func tellTimes() {
	begun := time.Now()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(time.Now().UnixNano(), int64(time.Since(begun)))
	}
}

// startClock has a child do that.
func startClock() {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"=clock")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func TestClockIsSetWhileProgramsRun(t *testing.T) {
	if runtime.GOARCH != "amd64" || os.Geteuid() != 0 {
		t.Skip("needs root on amd64")
	}
	for name, role := range map[string]string{"a program": "clock", "what a program starts": "parent"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clock := &Clock{}
			clock.Set(-time.Hour)
			ask, answers, end := program(t, clock, role)
			begun := time.Now()
			for _, offset := range []time.Duration{-time.Hour, 0, time.Hour, 40 * 24 * time.Hour, -3 * time.Minute} {
				clock.Set(offset)
				fmt.Fprintln(ask)
				var wall, ran int64
				if _, err := fmt.Fscan(answers, &wall, &ran); err != nil {
					t.Fatal(err)
				}
				if off := time.Until(time.Unix(0, wall)) - offset; off.Abs() > 10*time.Second {
					t.Errorf("at %v the clock is %v off", offset, off)
				}
				if d := time.Duration(ran); d < 0 || d > time.Since(begun)+30*time.Second {
					t.Errorf("at %v it has run for %v", offset, d)
				}
			}
			end()
			if err := clock.Wait(); err != nil {
				t.Error(err)
			}
			if clock.Answers() < 5 {
				t.Errorf("%d answers", clock.Answers())
			}
		})
	}
}

// program starts one on a clock.
func program(t *testing.T, clock *Clock, role string) (io.Writer, io.Reader, func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env, cmd.Stderr = append(os.Environ(), roleEnv+"="+role), os.Stderr
	ask, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := clock.Start(cmd); err != nil {
		t.Fatal(err)
	}
	return ask, answers, func() {
		ask.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the program ended: %v", err)
		}
	}
}
