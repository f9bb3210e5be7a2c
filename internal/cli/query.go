package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/format"
)

// maxSQL bounds a statement that is read from standard input, in bytes.
const maxSQL = 16 << 20

type queryFlags struct {
	source   string
	output   string
	timeout  time.Duration
	class    string
	timeline bool
}

func (a *app) queryCommand() *cobra.Command {
	var f queryFlags
	cmd := &cobra.Command{
		Use:   "query -s SOURCE SQL",
		Short: "Run a query; - reads the SQL from standard input",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.query(cmd.Context(), f, args[0])
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.source, "source", "s", "", "data source")
	fl.StringVarP(&f.output, "output", "o", "table", "table, csv, json, arrow or parquet")
	fl.DurationVar(&f.timeout, "timeout", 0, "bound on the whole query, such as 30s ")
	fl.StringVar(&f.class, "class", "interactive", "interactive or refresh")
	fl.BoolVar(&f.timeline, "timeline", false, "show how long each phase took, on standard error")
	_ = cmd.RegisterFlagCompletionFunc("source", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.names(cmd, "datasources"), cobra.ShellCompDirectiveNoFileComp
	})
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "csv", "json", "arrow", "parquet"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("class", cobra.FixedCompletions([]string{"interactive", "refresh"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) query(ctx context.Context, f queryFlags, sql string) error {
	media, err := a.checkQuery(f)
	if err != nil {
		return err
	}
	if sql == "-" {
		doc, err := io.ReadAll(io.LimitReader(a.In, maxSQL))
		if err != nil {
			return fmt.Errorf("read the SQL from standard input: %w", err)
		}
		sql = string(doc)
	}
	if !utf8.ValidString(sql) { // JSON would change it in silence
		return errs.New(errs.Invalid, "the SQL is not UTF-8 text").WithHint("convert it, with iconv for instance")
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	res, err := c.Query(ctx, client.Query{
		Source: f.source, SQL: sql, Class: f.class, Timeout: core.Duration(f.timeout), Traceparent: os.Getenv("TRACEPARENT"),
	}, media)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	rows, err := a.write(f, res)
	if err != nil {
		return a.whyBroken(ctx, c, res.QueryID, err)
	}
	if f.output == "table" {
		fmt.Fprintf(a.Err, "(%d %s)\n", rows, plural(rows, "row"))
	}
	if f.timeline {
		return a.printTimeline(ctx, c, res.QueryID)
	}
	return nil
}

func plural(n int64, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// checkQuery checks the flags and returns the media type to ask for.
func (a *app) checkQuery(f queryFlags) (string, error) {
	switch {
	case f.source == "":
		return "", errs.New(errs.Invalid, "query needs a data source").WithHint("-s SOURCE; \"sluice get datasources\" lists them")
	case f.class != string(core.ClassInteractive) && f.class != string(core.ClassRefresh):
		return "", errs.New(errs.Invalid, "--class %s is not interactive or refresh", f.class)
	case f.timeout < 0:
		return "", errs.New(errs.Invalid, "--timeout %s is negative", f.timeout)
	case f.output == "table":
		return client.MediaArrow, nil
	}
	form, ok := format.ByName(f.output)
	if !ok {
		return "", errs.New(errs.Invalid, "-o %s is not table, csv, json, arrow or parquet", f.output)
	}
	if _, tty := isTerminal(a.Out); tty && (form.Media == client.MediaArrow || form.Media == client.MediaParquet) {
		return "", errs.New(errs.Invalid, "-o %s is binary and standard output is a terminal", f.output).WithHint("redirect it to a file")
	}
	return form.Media, nil
}

// write passes the result to standard output, with a progress line on a terminal.
func (a *app) write(f queryFlags, res *client.Result) (rows int64, err error) {
	in := &counter{r: res.Body}
	stop := a.progress(in, f.output)
	defer stop()
	if f.output != "table" {
		_, err = io.Copy(a.Out, in)
		return 0, err
	}
	width, _ := isTerminal(a.Out)
	return format.Table(a.Out, in, format.TableOptions{Width: width})
}

// whyBroken asks the query's record for the reason why its result broke off.
func (a *app) whyBroken(ctx context.Context, c *client.Client, id string, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	for range 10 { // the record ends a moment after the stream
		rec, recErr := c.QueryRecord(ctx, id)
		if recErr != nil {
			return err
		}
		if rec.Error != "" {
			out := *errs.As(err)
			out.Class = errs.Class(rec.ErrorClass)
			out.Message, out.Step = rec.Error+" (the rows above are not the whole result)", rec.ErrorStep
			return &out
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// counter counts what is read through it.
type counter struct {
	r io.Reader
	n atomic.Int64
}

// Read implements io.Reader.
func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// progress shows a line on standard error while a long transfer runs, if that is a
// terminal and standard output is not.
func (a *app) progress(c *counter, output string) (stop func()) {
	_, errTTY := isTerminal(a.Err)
	if _, outTTY := isTerminal(a.Out); !errTTY || outTTY {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	begun := time.Now()
	go func() {
		defer close(ended)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		shown := false
		for {
			select {
			case <-done:
				if shown {
					fmt.Fprint(a.Err, "\r\033[K")
				}
				return
			case <-tick.C:
				mb, s := float64(c.n.Load())/1e6, time.Since(begun).Seconds()
				fmt.Fprintf(a.Err, "\r\033[K%s: %.1f MB, %.1f MB/s", output, mb, mb/s)
				shown = true
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

func (a *app) queriesCommand() *cobra.Command {
	var output string
	var limit int
	cmd := &cobra.Command{
		Use:               "queries [ID]",
		Short:             "Show the query log; with ID one query's phases",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeNames("queries"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.queryLog(cmd.Context(), output, limit)
			}
			if output != "table" {
				return a.get(cmd, append([]string{"queries"}, args...), output)
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			rec, err := c.QueryRecord(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.printRecord(rec)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", strings.Join(outputs, ", "))
	cmd.Flags().IntVar(&limit, "limit", 100, "how many, the newest first")
	cmd.AddCommand(a.cancelCommand())
	return cmd
}

func (a *app) cancelCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "cancel ID",
		Short:             "End a query that runs or waits",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNames("queries"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			return c.CancelQuery(cmd.Context(), args[0])
		},
	}
}

// queryLog prints the newest records.
func (a *app) queryLog(ctx context.Context, output string, limit int) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	items, err := c.Queries(ctx, limit)
	if err != nil {
		return err
	}
	kind, err := kindOf("queries")
	if err != nil {
		return err
	}
	if err := a.print(kind, items, output, false); err != nil {
		return err
	}
	if len(items) == limit {
		fmt.Fprintf(a.Err, "(the newest %d; --limit N shows more)\n", limit)
	}
	return nil
}

// printRecord prints everything about one query.
func (a *app) printRecord(q core.Query) error {
	address := ""
	if q.Address.IsValid() {
		address = q.Address.String()
	}
	for _, row := range [][2]string{
		{"query", q.ID}, {"state", string(q.State)}, {"user", q.User}, {"source", q.Source}, {"gateway", q.Gateway},
		{"class", string(q.Class)}, {"member", q.Member}, {"address", address},
		{"started", q.StartedAt.Local().Format("2006-01-02 15:04:05.000")},
		{"rows", fmt.Sprint(q.Rows)}, {"bytes", fmt.Sprint(q.Bytes)}, {"sql", q.SQL}, {"sql hash", q.SQLHash},
		{"place", positive(q.QueuePosition)}, {"behind", positive(q.QueuedBehind)}, {"run again", q.Retried},
		{"failed at", q.ErrorStep}, {"error", q.Error},
	} {
		if row[1] != "" {
			fmt.Fprintf(a.Out, "%-10s %s\n", row[0], printable(row[1]))
		}
	}
	return timeline(a.Out, q)
}

// positive shows a number that says something only if it is above 0.
func positive(n int) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// printTimeline prints a query's phases on standard error.
func (a *app) printTimeline(ctx context.Context, c *client.Client, id string) error {
	for range 20 { // the record ends a moment after the stream
		rec, err := c.QueryRecord(ctx, id)
		if err != nil {
			return err
		}
		if rec.State != core.QueryRunning && rec.State != core.QueryQueued {
			return timeline(a.Err, rec)
		}
		time.Sleep(25 * time.Millisecond)
	}
	return errs.New(errs.Unavailable, "query %s has no complete record yet", id)
}

// timeline prints one line per phase, with a bar, and the sum.
func timeline(w io.Writer, q core.Query) error {
	const bar = 40
	total := q.EndedAt.Sub(q.StartedAt)
	var at time.Duration
	for _, p := range q.Phases {
		from, length := 0, 0
		if total > 0 {
			from = int(float64(at) / float64(total) * bar)
			length = max(1, int(float64(p.Duration)/float64(total)*bar+0.5))
		}
		from = min(from, bar-1)
		length = min(length, bar-from)
		fmt.Fprintf(w, "%-13s %10s  %s%s\n", p.Name, milliseconds(p.Duration), strings.Repeat(" ", from), strings.Repeat("▇", length))
		at += p.Duration
	}
	if total <= 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "%-13s %10s\n", "total", milliseconds(total))
	return err
}
