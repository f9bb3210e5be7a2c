package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestQuantile(t *testing.T) {
	values := []float64{4, 1, 3, 2}
	for q, want := range map[float64]float64{0: 1, 0.5: 2.5, 1: 4} {
		if got := quantile(values, q); got != want {
			t.Errorf("quantile(%v, %v) = %v, want %v", values, q, got, want)
		}
	}
}

// The ratio must come from pairs: the machine was twice as slow in the second round.
func TestRatioIsOfRounds(t *testing.T) {
	if got := ratio([]float64{10, 20, 10}, []float64{5, 10, 5}); got != 2 {
		t.Errorf("ratio = %v, want 2", got)
	}
}

func TestAlternateBeginsEachRoundWithAnother(t *testing.T) {
	var got strings.Builder
	var ways []way
	for _, name := range []string{"a", "b", "c"} {
		ways = append(ways, way{name, func(context.Context) error { got.WriteString(name); return nil }})
	}
	if err := alternate(t.Context(), 3, ways); err != nil {
		t.Fatal(err)
	}
	if want := "abcbcacab"; got.String() != want {
		t.Errorf("order %s, want %s", got.String(), want)
	}
}

// A process's time must hold that of a child that runs, and of one that has ended.
func TestCPUSecondsCountsDescendants(t *testing.T) {
	burn := `i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done`
	for name, script := range map[string]string{
		"ended":   "sh -c '" + burn + "'; echo done; cat",
		"running": "sh -c '" + burn + "; echo done; cat'; true",
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("sh", "-c", script)
			in, _ := cmd.StdinPipe()
			out, _ := cmd.StdoutPipe()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer in.Close()
			if _, err := out.Read(make([]byte, 8)); err != nil {
				t.Fatal(err)
			}
			own, err := readProcess(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			all, err := cpuSeconds(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			if mine := float64(own.own) / ticksPerSecond; all < mine+0.05 {
				t.Errorf("%.2f s with the child, %.2f s without", all, mine)
			}
		})
	}
}

func TestPeakOfThisProcess(t *testing.T) {
	kb, err := peakKB(os.Getpid())
	if err != nil || kb < 1000 {
		t.Errorf("peakKB = %v, %v", kb, err)
	}
}

// What Fatal ends must still be cleaned up, the last first, even past a cleanup that fails.
func TestCleanUpAfterFatal(t *testing.T) {
	var order []int
	b := &tb{out: &bytes.Buffer{}}
	b.run(func() {
		b.Cleanup(func() { order = append(order, 1) })
		b.Cleanup(func() { order = append(order, 2); b.Fatal("no") })
		b.Fatal("broken")
	})
	if diff := cmp.Diff([]int{2, 1}, order); diff != "" || !b.Failed() {
		t.Errorf("failed %v, order (-want +got):\n%s", b.Failed(), diff)
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	printTable(&out, []row{
		row{Figure: "f", This: quantity{Value: 0.5, Unit: "ms"}, Runs: 3}.against(quantity{0.25, "ms", "pgx"}, 2).goal("≤ 1", false),
	})
	lines := strings.Split(out.String(), "\n")
	if want := []string{"f", "0.500", "ms", "0.250", "ms", "pgx", "2.00", "≤", "1", "NO", "3"}; len(lines) < 2 || !cmp.Equal(want, strings.Fields(lines[1])) {
		t.Errorf("got %q, want the fields %q", out.String(), want)
	}
}

// An unknown client, and one that can't reach its server, must fail.
func TestClientFails(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, kind := range []string{"nobody", "pgx", "flight", "http"} {
		var out, errOut bytes.Buffer
		in := strings.NewReader(`{"address":"http://127.0.0.1:1","sql":"select 1"}`)
		if code := runClient(ctx, kind, in, &out, &errOut); code == 0 || errOut.Len() == 0 {
			t.Errorf("client %s: status %d, %q", kind, code, errOut.String())
		}
	}
}
