// Command bench measures Sluice against what people use today, side by side on this
// machine and in one run: ratios hold on a machine of any speed, absolute figures don't.
//
// It owns a PostgreSQL server and an installation of its own, made for the run and
// removed after it. "make bench" runs it, from the repository's root, as root. Each
// measurement alternates with what it is compared to; a value is the median of its
// runs, a ratio the median of the rounds' ratios. The table goes to standard output,
// every sample to bench/results/NAME.json.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

func main() { os.Exit(start(os.Args[1:])) }

func start(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) == 2 && args[0] == clientArg {
		return runClient(ctx, args[1], os.Stdin, os.Stdout, os.Stderr)
	}
	if len(args) > 0 && args[0] == copierArg {
		return runCopier(args[1:], os.Stderr)
	}
	return run(ctx, args, os.Stdout, os.Stderr)
}

// options are what the command line says.
type options struct {
	only    *regexp.Regexp
	scale   scale
	bin     string
	results string
	hold    bool
}

// scale is how much each benchmark does.
type scale struct {
	Quick        bool  `json:"quick"`
	Rows         int   `json:"rows"` // of the bulk transfer
	BulkRuns     int   `json:"bulkRuns"`
	ShortQueries int   `json:"shortQueries"` // of one way in one round
	ShortRounds  int   `json:"shortRounds"`
	Wakes        int   `json:"wakes"`
	Cells        []int `json:"cells"` // sizes of results, in ascending order
	MemoryRounds int   `json:"memoryRounds"`
	Connections  int   `json:"connections"` // of one way in one round
	StreamMB     int64 `json:"streamMB"`
	PacketRounds int   `json:"packetRounds"`
	Changes      int   `json:"changes"` // of rules
	Herd         int   `json:"herd"`    // queries at once
	HerdRounds   int   `json:"herdRounds"`
	Idle         int   `json:"idle"` // members
}

func scaleOf(quick bool) scale {
	if quick {
		return scale{
			Quick: true, Rows: 400_000, BulkRuns: 2, ShortQueries: 600, ShortRounds: 2, Wakes: 8,
			Cells: []int{1_000_000, 10_000_000}, MemoryRounds: 1,
			Connections: 1000, StreamMB: 256, PacketRounds: 2, Changes: 20, Herd: 200, HerdRounds: 2, Idle: 40,
		}
	}
	return scale{
		Rows: 3_000_000, BulkRuns: 5, ShortQueries: 2000, ShortRounds: 3, Wakes: 30,
		Cells: []int{1_000_000, 10_000_000, 100_000_000}, MemoryRounds: 3,
		Connections: 5000, StreamMB: 2048, PacketRounds: 7, Changes: 200, Herd: 1000, HerdRounds: 5, Idle: 300,
	}
}

// limit bounds the whole run.
const limit = 20 * time.Minute

// benchmark is one that -run can choose.
type benchmark struct {
	name string
	run  func(ctx context.Context, e *env) (*result, error)
}

func benchmarks() []benchmark {
	return []benchmark{{"bulk", bulk}, {"short", short}, {"wake", wake}, {"memory", memory}, {"packets", packets}, {"slow", slow}, {"herd", herd}, {"idle", idle}}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	opts, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "error:", err)
		return 2
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var rows []row
	t := &tb{out: stderr}
	t.run(func() { rows = measure(ctx, t, opts) })
	if len(rows) > 0 {
		printTable(stdout, rows)
	}
	if t.Failed() {
		return 1
	}
	return 0
}

func parse(args []string, stderr io.Writer) (options, error) {
	var only string
	var quick bool
	var opts options
	fl := flag.NewFlagSet("bench", flag.ContinueOnError)
	fl.SetOutput(stderr)
	fl.StringVar(&only, "run", ".", "regular expression of the benchmarks to run: bulk, short, wake, memory, packets, slow, herd, idle")
	fl.BoolVar(&quick, "quick", false, "fewer rows and runs, within a minute: to see that all works")
	fl.StringVar(&opts.bin, "bin", "bin", "folder with sluice and sluice-gateway")
	fl.StringVar(&opts.results, "results", "bench/results", "where the samples go")
	fl.BoolVar(&opts.hold, "hold", false, "set everything up, measure nothing, and wait: to profile by hand")
	if err := fl.Parse(args); err != nil {
		return opts, err
	}
	opts.scale = scaleOf(quick)
	var err error
	if opts.only, err = regexp.Compile(only); err != nil {
		return opts, fmt.Errorf("-run: %w", err)
	}
	if opts.bin, err = filepath.Abs(opts.bin); err != nil {
		return opts, err
	}
	for _, program := range []string{"sluice", "sluice-gateway"} {
		if _, err := os.Stat(filepath.Join(opts.bin, program)); err != nil {
			return opts, fmt.Errorf("%w (run \"make build\" first, in the repository's root)", err)
		}
	}
	return opts, nil
}

// measure runs the chosen benchmarks. One that fails does not stop the others.
func measure(ctx context.Context, t *tb, opts options) []row {
	facts := machineFacts()
	t.Logf("%s", facts)
	e := newEnv(ctx, t, opts)
	if opts.hold {
		if err := e.hold(ctx); err != nil {
			t.Errorf("%v", err)
		}
		return nil
	}
	var rows []row
	for _, b := range benchmarks() {
		if !opts.only.MatchString(b.name) || ctx.Err() != nil {
			continue
		}
		begun, load := time.Now(), loadAverage()
		t.Logf("%s …", b.name)
		res, err := b.run(ctx, e)
		if err != nil {
			t.Errorf("%s: %v", b.name, err)
			continue
		}
		t.Logf("%s: %.0f s", b.name, time.Since(begun).Seconds())
		rows = append(rows, res.Rows...)
		rep := report{Name: b.name, Begun: begun, Seconds: time.Since(begun).Seconds(), LoadBefore: load, Machine: facts, Scale: opts.scale, result: *res}
		if err := rep.write(opts.results); err != nil {
			t.Errorf("%s: %v", b.name, err)
		}
	}
	if ctx.Err() != nil {
		t.Errorf("the run was cut short: %v", context.Cause(ctx))
	}
	return rows
}
