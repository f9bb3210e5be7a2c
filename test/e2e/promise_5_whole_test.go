package e2e

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"

	"github.com/sluice-gateway/sluice/client"
)

// cutRows is large enough that no chain of buffers holds the whole result: some 20 MB.
const cutRows = 150_000

const cutSQL = `select g as id, md5(g::text) as h, repeat(md5(g::text), 3) as pad from generate_series(1, 150000) g`

// rowHash hashes rows as id, h, pad.
type rowHash struct {
	hash.Hash
	rows int
}

func newRowHash() *rowHash { return &rowHash{Hash: sha256.New()} }

func (h *rowHash) add(id, sum, pad string) {
	h.rows++
	io.WriteString(h, id+"|"+sum+"|"+pad+"\n")
}

func (h *rowHash) String() string { return fmt.Sprintf("%d rows %x", h.rows, h.Sum(nil)) }

// wholeResult is what the query must give, made without any of the programs under test.
func wholeResult() string {
	h := newRowHash()
	for i := 1; i <= cutRows; i++ {
		id := strconv.Itoa(i)
		sum := md5.Sum([]byte(id))
		text := hex.EncodeToString(sum[:])
		h.add(id, text, strings.Repeat(text, 3))
	}
	return h.String()
}

func (h *rowHash) batch(b arrow.RecordBatch) error {
	if b.NumCols() != 3 {
		return fmt.Errorf("%d columns", b.NumCols())
	}
	for r := range int(b.NumRows()) {
		h.add(b.Column(0).ValueStr(r), b.Column(1).ValueStr(r), b.Column(2).ValueStr(r))
	}
	return nil
}

// decoders read a whole result in each of the formats of the HTTP API.
var decoders = map[string]struct {
	media  string
	decode func([]byte) (string, error)
}{
	"arrow":   {client.MediaArrow, hashArrow},
	"csv":     {client.MediaCSV, hashCSV},
	"json":    {client.MediaJSON, hashJSON},
	"parquet": {client.MediaParquet, hashParquet},
}

func hashArrow(doc []byte) (string, error) {
	if !bytes.HasSuffix(doc, []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}) {
		return "", errors.New("no end-of-stream marker")
	}
	rd, err := ipc.NewReader(bytes.NewReader(doc))
	if err != nil {
		return "", err
	}
	defer rd.Release()
	h := newRowHash()
	for rd.Next() {
		if err := h.batch(rd.RecordBatch()); err != nil {
			return "", err
		}
	}
	return h.String(), rd.Err()
}

func hashCSV(doc []byte) (string, error) {
	rd := csv.NewReader(bytes.NewReader(doc))
	rd.ReuseRecord = true
	if _, err := rd.Read(); err != nil {
		return "", err
	}
	h := newRowHash()
	for {
		row, err := rd.Read()
		if err == io.EOF {
			return h.String(), nil
		}
		if err != nil || len(row) != 3 {
			return "", fmt.Errorf("%d fields: %w", len(row), err)
		}
		h.add(row[0], row[1], row[2])
	}
}

func hashJSON(doc []byte) (string, error) {
	var out struct{ Rows [][3]any }
	if err := json.Unmarshal(doc, &out); err != nil {
		return "", err
	}
	h := newRowHash()
	for _, r := range out.Rows {
		id, _ := r[0].(float64)
		h.add(strconv.Itoa(int(id)), fmt.Sprint(r[1]), fmt.Sprint(r[2]))
	}
	return h.String(), nil
}

func hashParquet(doc []byte) (string, error) {
	pf, err := file.NewParquetReader(bytes.NewReader(doc))
	if err != nil {
		return "", err
	}
	defer pf.Close()
	rd, err := pqarrow.NewFileReader(pf, pqarrow.ArrowReadProperties{BatchSize: 16 << 10}, memory.DefaultAllocator)
	if err != nil {
		return "", err
	}
	table, err := rd.ReadTable(context.Background())
	if err != nil {
		return "", err
	}
	defer table.Release()
	h := newRowHash()
	batches := array.NewTableReader(table, 16<<10)
	defer batches.Release()
	for batches.Next() {
		if err := h.batch(batches.RecordBatch()); err != nil {
			return "", err
		}
	}
	return h.String(), batches.Err()
}

const resetTunnel = "reset the tunnel"

// cutter breaks things while results stream, and mends them.
type cutter struct {
	*lab
	t    *testing.T
	want string
	rng  *rand.Rand
	opts struct{ patience time.Duration }
}

// An action breaks something; the function that it returns mends it.
type action func(*cutter) (mend func())

func actions() map[string]action {
	nothing := func() {}
	return map[string]action{
		"kill the member": func(c *cutter) func() {
			for _, pid := range c.containers() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			return nothing
		},
		"kill the service": func(c *cutter) func() { c.kill("service"); return c.startService },
		"kill the host":    func(c *cutter) func() { c.kill("host"); return c.startHost },
		"end the source's session": func(c *cutter) func() {
			c.PG.Exec(c.t, "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'report'")
			return nothing
		},
		"stop the source": func(c *cutter) func() { c.PG.Stop(c.t); return func() { c.PG.Restart(c.t) } },
		"drop the tunnel's packets for a while": func(c *cutter) func() {
			return c.rule("tcp dport 8483 drop", 700*time.Millisecond)
		},
		resetTunnel: func(c *cutter) func() {
			return c.rule("tcp dport 8483 tcp flags != rst reject with tcp reset", 300*time.Millisecond)
		},
		"change the tunnel's bytes": func(c *cutter) func() {
			return c.rule("tcp dport 8483 ip length > 1000 @th,4096,8 set 0x5a", 300*time.Millisecond)
		},
	}
}

// rule puts a rule in front of what reaches the relay, and takes it away after a time.
func (c *cutter) rule(text string, during time.Duration) (mend func()) {
	c.t.Helper()
	remove := c.insert(text)
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(during)
		remove()
	}()
	return func() { <-done }
}

// insert puts a rule in front of what reaches the relay; remove takes it away.
func (c *cutter) insert(text string) (remove func()) {
	c.t.Helper()
	space := c.tunnelSpace()
	add := "add table inet chaos; add chain inet chaos in { type filter hook input priority -200; }; add rule inet chaos in " + text
	if out, err := commandIn(space, "nft", add); err != nil {
		c.t.Fatalf("nft %s: %v\n%s", add, err, out)
	}
	return func() {
		if out, err := commandIn(space, "nft", "delete table inet chaos"); err != nil {
			c.t.Errorf("take the rule away: %v\n%s", err, out)
		}
	}
}

// TestPromise5WholeOrError cuts results at random points in every format by every means:
// the client has the whole result, or an error. Never less.
func TestPromise5WholeOrError(t *testing.T) {
	busy.take(t)
	c := &cutter{lab: newLab(t, startPG(t)), t: t, want: wholeResult(), rng: seeded(t)}
	c.opts.patience = 2 * time.Minute
	c.uncut()
	type cut struct{ form, what string }
	var cuts []cut
	for _, form := range []string{"arrow", "csv", "json", "parquet", "flight"} {
		for _, what := range slices.Sorted(maps.Keys(actions())) {
			if what == resetTunnel && form != "csv" {
				continue // the host's end learns of it by a time-out of 10 s: once is enough
			}
			cuts = append(cuts, cut{form, what})
		}
	}
	c.rng.Shuffle(len(cuts), func(i, j int) { cuts[i], cuts[j] = cuts[j], cuts[i] })
	if testing.Short() {
		cuts = cuts[:10]
	}
	broken := map[string]int{}
	for _, k := range cuts {
		if c.cut(k.form, k.what) {
			broken[k.what]++
		}
	}
	t.Logf("%d cuts; results that broke off, by cause: %v", len(cuts), broken)
	for _, what := range []string{"kill the member", "kill the service", "end the source's session"} {
		if broken[what] == 0 && !testing.Short() {
			t.Errorf("%q broke no result: nothing was cut", what)
		}
	}
}

// uncut checks that without a cut every format gives the whole result.
func (c *cutter) uncut() {
	c.t.Helper()
	for _, form := range []string{"arrow", "csv", "json", "parquet", "flight"} {
		got, err := c.read(form, func() {}, 0)
		if err != nil || got != c.want {
			c.t.Fatalf("%s without a cut: %s, %v; want %s", form, got, err, c.want)
		}
	}
}

// cut runs one query, breaks something on the way, and reports whether the result broke.
func (c *cutter) cut(form, what string) bool {
	c.t.Helper()
	worksAgain(c.t, c.api, 90*time.Second)
	at := c.rng.Float64() * 0.6
	mend := func() {}
	begun := time.Now()
	got, err := c.read(form, func() { mend = actions()[what](c) }, at)
	took := time.Since(begun)
	mend()
	c.t.Logf("%-8s at %2.0f %%: %-40s %v %s", form, at*100, what, took.Round(time.Millisecond), verdict(err))
	switch {
	case errors.Is(err, context.DeadlineExceeded) || took > c.opts.patience:
		c.t.Errorf("%s at %.0f %%: %s: nothing for %v: neither the whole result nor an error: %v", form, at*100, what, took, err)
	case err == nil && got != c.want:
		c.t.Errorf("%s at %.0f %%: %s: no error, but %s; want %s", form, at*100, what, got, c.want)
	}
	return err != nil
}

func verdict(err error) string {
	if err == nil {
		return "whole"
	}
	return "error: " + strings.ReplaceAll(fmt.Sprintf("%.160s", err), "\n", " ")
}

// read runs the query and gives the hash of its rows. Once the given part of the rows or
// bytes is there, it calls act, and reads on when that is done.
func (c *cutter) read(form string, act func(), at float64) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), c.opts.patience)
	defer cancel()
	if form == "flight" {
		return c.readFlight(ctx, act, at)
	}
	d := decoders[form]
	if form == "parquet" { // its rows leave in groups of many: bytes say nothing of how far the query is
		wait, acted := act, make(chan struct{})
		time.AfterFunc(time.Duration(at*500)*time.Millisecond, func() { defer close(acted); wait() })
		defer func() { <-acted }()
		act = func() {}
	}
	res, err := c.api.Query(ctx, client.Query{Source: source, SQL: cutSQL}, d.media)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	const size = 19 << 20 // of the smallest format
	var doc bytes.Buffer
	_, err = io.CopyN(&doc, res.Body, int64(at*size))
	act()
	if err == nil {
		_, err = io.Copy(&doc, res.Body)
	}
	if err == nil {
		return d.decode(doc.Bytes())
	}
	// A client that looks at the bytes alone must not take less for the whole either. CSV
	// has no end of its own: there only the transport tells.
	if form != "csv" {
		if got, decodeErr := d.decode(doc.Bytes()); decodeErr == nil && got != c.want {
			c.t.Errorf("%s: the bytes that came before the error %q look whole, but are %s", form, err, got)
		}
	}
	return "", err
}

func (c *cutter) readFlight(ctx context.Context, act func(), at float64) (string, error) {
	cnxn, err := c.connectADBC(nil)
	if err != nil {
		return "", err
	}
	defer cnxn.Close()
	st, err := cnxn.NewStatement()
	if err != nil {
		return "", err
	}
	defer st.Close()
	if err := st.SetSqlQuery(cutSQL); err != nil {
		return "", err
	}
	rd, _, err := st.ExecuteQuery(ctx)
	if err != nil {
		return "", err
	}
	defer rd.Release()
	h, acted := newRowHash(), false
	for rd.Next() {
		if err := h.batch(rd.RecordBatch()); err != nil {
			return "", err
		}
		if !acted && float64(h.rows) >= at*cutRows {
			acted = true
			act()
		}
	}
	if rd.Err() != nil {
		return "", rd.Err()
	}
	return h.String(), nil
}

// TestPromise5SilentTunnel lets the tunnel fall silent for good in the middle of a result:
// the client gets an error in bounded time, and the next query works.
func TestPromise5SilentTunnel(t *testing.T) {
	waiting.take(t)
	if testing.Short() {
		t.Skip("waits for time-outs of 15 s")
	}
	c := &cutter{lab: newLab(t, sharedPG(t)), t: t, want: wholeResult(), rng: seeded(t)}
	c.opts.patience = 2 * time.Minute
	worksAgain(t, c.api, 60*time.Second)
	mend := func() {}
	defer func() { mend() }()
	begun := time.Now()
	got, err := c.read("arrow", func() { mend = sync.OnceFunc(c.insert("drop")) }, 0.05)
	t.Logf("after %v: %s", time.Since(begun), verdict(err))
	if err == nil {
		t.Errorf("no error, although nothing came through; got %s", got)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		t.Error("the client waited for nothing until its own time-out")
	}
	mend()
	worksAgain(t, c.api, 90*time.Second)
}
