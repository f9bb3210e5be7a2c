package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/internal/testpg"
	"github.com/sluice-gateway/sluice/test/e2e/stack"
)

const (
	gatewayName = "bench"
	sourceName  = "bench"
)

// env is what the benchmarks run on: a database server and an installation with one
// gateway and one data source, the server behind a private endpoint.
type env struct {
	t          *tb
	scale      scale
	pg         *testpg.Server
	postmaster int // the server's first process
	stack      *stack.Stack
	sluice     int // the process that is service and host
	rows       int // in lineitem; 0 before it is made
}

func newEnv(ctx context.Context, t *tb, opts options) *env {
	e := &env{t: t, scale: opts.scale}
	// One plan for every way of asking, and one process that works on it.
	e.pg = testpg.Start(t, testpg.WithSetting("max_parallel_workers_per_gather", "0"))
	var err error
	if e.postmaster, err = e.findPostmaster(ctx); err != nil {
		t.Fatalf("find the server's first process: %v", err)
	}
	e.install(opts.bin)
	return e
}

// install makes an installation and what it needs for queries.
func (e *env) install(bin string, flags ...string) {
	e.stack = stack.NewFrom(e.t, bin)
	e.sluice = e.stack.Up(flags...).Cmd.Process.Pid
	if err := e.apply(); err != nil {
		e.t.Fatal(err)
	}
}

// beside makes a second installation, with other flags, on the same database server.
func (e *env) beside(flags ...string) *env {
	other := *e
	other.install(e.stack.Bin, flags...)
	return &other
}

// findPostmaster asks a backend for its number: the postmaster is its parent.
func (e *env) findPostmaster(ctx context.Context) (int, error) {
	conn, err := pgx.Connect(ctx, e.pg.ConnString())
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx) //nolint:errcheck // all was read
	var backend int
	if err := conn.QueryRow(ctx, "select pg_backend_pid()").Scan(&backend); err != nil {
		return 0, err
	}
	p, err := readProcess(backend)
	return p.parent, err
}

//go:embed resources.yaml
var resources string

// apply creates the resources that every benchmark uses.
func (e *env) apply() error { return e.applyText(resources) }

// applyText creates resources; the password goes by a file, as people are told to.
func (e *env) applyText(text string) error {
	file := filepath.Join(e.stack.Dir, "password")
	if err := os.WriteFile(file, []byte(e.pg.Password), 0o600); err != nil {
		return err
	}
	port := strconv.Itoa(e.pg.Port)
	e.stack.Apply(strings.NewReplacer("PORT", port, "USER", e.pg.User, "DATABASE", e.pg.Database, "FILE", file).Replace(text))
	return nil
}

//go:embed lineitem.sql
var fillLineitem string

const makeLineitem = `create unlogged table lineitem (
	l_orderkey integer not null, l_partkey integer not null, l_suppkey integer not null, l_linenumber integer not null,
	l_quantity numeric(15,2) not null, l_extendedprice numeric(15,2) not null, l_discount numeric(15,2) not null, l_tax numeric(15,2) not null,
	l_returnflag char(1) not null, l_linestatus char(1) not null,
	l_shipdate date not null, l_commitdate date not null, l_receiptdate date not null,
	l_shipinstruct char(25) not null, l_shipmode char(10) not null, l_comment varchar(44) not null)`

// lineitemColumns is the width of the table.
const lineitemColumns = 16

// lineitem makes the table on first use.
func (e *env) lineitem(ctx context.Context) error {
	if e.rows > 0 {
		return nil
	}
	begun := time.Now()
	conn, err := pgx.Connect(ctx, e.pg.ConnString())
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // all was read
	if _, err := conn.Exec(ctx, makeLineitem); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, fillLineitem, e.scale.Rows); err != nil {
		return err
	}
	// Else the first reader pays for marking each row as visible.
	if _, err := conn.Exec(ctx, "vacuum (freeze, analyze) lineitem"); err != nil {
		return err
	}
	e.rows = e.scale.Rows
	e.t.Logf("lineitem: %d rows in %.0f s", e.rows, time.Since(begun).Seconds())
	return nil
}

// client speaks to the service over TCP, as another machine would.
func (e *env) client() (*client.Client, error) {
	return client.New(client.Options{URL: "http://" + e.stack.HTTP, Token: e.stack.Token()})
}

// gateway wakes or pauses the gateway and waits until it is so.
func (e *env) gateway(ctx context.Context, act string) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := c.Gateway(ctx, act, gatewayName); err != nil {
		return fmt.Errorf("%s the gateway: %w", act, err)
	}
	return nil
}

// member is the gateway's one running member as the machine sees it.
type member struct {
	bundle string // its OCI bundle
	pid    int
}

func (e *env) member() (member, error) {
	files, err := filepath.Glob(filepath.Join(e.stack.Run, "members", "bundles", "m-*", "pid"))
	if err != nil {
		return member{}, err
	}
	if len(files) != 1 {
		return member{}, fmt.Errorf("%d members run, want one", len(files))
	}
	raw, err := os.ReadFile(files[0])
	if err != nil {
		return member{}, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid < 1 {
		return member{}, errors.New(files[0] + " holds no process number")
	}
	return member{bundle: filepath.Dir(files[0]), pid: pid}, nil
}
