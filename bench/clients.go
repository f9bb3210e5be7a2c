package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/sluice-gateway/sluice/client"
)

// clientArg makes the program a client of its own, so that the kernel counts what the
// client uses apart from what measures it.
const clientArg = "client"

// job is what a client is to fetch. It comes by standard input, as it holds secrets.
type job struct {
	Address string `json:"address"` // of the service, or a PostgreSQL connection string
	Token   string `json:"token"`
	SQL     string `json:"sql"`
}

// fetched is what a client counted.
type fetched struct {
	Rows  int64 `json:"rows"`
	Bytes int64 `json:"bytes"` // of the columns, where the client knows
}

// runClient is the program as a client of the kind that its argument names.
func runClient(ctx context.Context, kind string, in io.Reader, out, errOut io.Writer) int {
	var j job
	if err := json.NewDecoder(in).Decode(&j); err != nil {
		fmt.Fprintln(errOut, "error:", err)
		return 1
	}
	fetch := map[string]func(context.Context, job) (fetched, error){"flight": fetchFlight, "http": fetchHTTP, "pgx": fetchPgx}[kind]
	if fetch == nil {
		fmt.Fprintf(errOut, "error: there is no client %q\n", kind)
		return 2
	}
	got, err := fetch(ctx, j)
	if err == nil {
		err = json.NewEncoder(out).Encode(got)
	}
	if err != nil {
		fmt.Fprintln(errOut, "error:", err)
		return 1
	}
	return 0
}

func (f *fetched) use(b arrow.RecordBatch) error {
	f.Rows += b.NumRows()
	for _, col := range b.Columns() {
		for _, buf := range col.Data().Buffers() {
			if buf != nil {
				f.Bytes += int64(buf.Len())
			}
		}
	}
	return nil
}

func fetchFlight(ctx context.Context, j job) (got fetched, err error) {
	c, err := dialFlight(j.Address, j.Token)
	if err != nil {
		return got, err
	}
	defer c.Close()                          //nolint:errcheck // all was read
	c.headers.Set("sluice-class", "refresh") // which has no row limit
	return got, c.query(ctx, j.SQL, got.use)
}

func fetchHTTP(ctx context.Context, j job) (got fetched, err error) {
	c, err := client.New(client.Options{URL: j.Address, Token: j.Token})
	if err != nil {
		return got, err
	}
	defer c.Close()
	return got, queryHTTP(ctx, c, client.Query{Source: sourceName, SQL: j.SQL, Class: "refresh"}, got.use)
}

// queryHTTP reads a result as an Arrow stream to its proper end.
func queryHTTP(ctx context.Context, c *client.Client, q client.Query, use func(arrow.RecordBatch) error) error {
	res, err := c.Query(ctx, q, client.MediaArrow)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	r, err := ipc.NewReader(res.Body)
	if err != nil {
		return err
	}
	defer r.Release()
	if err := drain(r, use); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

// fetchPgx reads row by row into Go values, as programs do that know no Arrow.
func fetchPgx(ctx context.Context, j job) (got fetched, err error) {
	conn, err := pgx.Connect(ctx, j.Address)
	if err != nil {
		return got, err
	}
	defer conn.Close(ctx) //nolint:errcheck // all was read
	rows, err := conn.Query(ctx, j.SQL)
	if err != nil {
		return got, err
	}
	defer rows.Close()
	var keys [4]int32
	var amounts [4]pgtype.Numeric
	var flags, texts [5]string
	var dates [3]time.Time
	into := []any{
		&keys[0], &keys[1], &keys[2], &keys[3], &amounts[0], &amounts[1], &amounts[2], &amounts[3],
		&flags[0], &flags[1], &dates[0], &dates[1], &dates[2], &texts[0], &texts[1], &texts[2],
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return got, err
		}
		got.Rows++
	}
	return got, rows.Err()
}

// ran is how a client process went.
type ran struct {
	got  fetched
	wall float64 // seconds, from its start to its end
	cpu  float64 // seconds
}

// clientTimeout bounds one client.
const clientTimeout = 3 * time.Minute

// runClientProcess starts this program as a client and waits for it.
func runClientProcess(ctx context.Context, kind string, j job) (ran, error) {
	self, err := os.Executable()
	if err != nil {
		return ran{}, err
	}
	doc, err := json.Marshal(j)
	if err != nil {
		return ran{}, err
	}
	r, out, err := timed(ctx, strings.NewReader(string(doc)), nil, self, clientArg, kind)
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(out, &r.got)
}

// timed runs a program to its end.
func timed(ctx context.Context, stdin io.Reader, env []string, program string, args ...string) (ran, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Env = stdin, append(os.Environ(), env...)
	var errOut strings.Builder
	cmd.Stderr = &errOut
	begun := time.Now()
	out, err := cmd.Output()
	wall := time.Since(begun)
	if err != nil {
		return ran{}, nil, fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(errOut.String()))
	}
	used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return ran{wall: wall.Seconds(), cpu: used.Seconds()}, out, nil
}
