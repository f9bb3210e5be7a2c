package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// Bounds of a batch. Larger ones are not faster, and every reader on the way holds some.
const (
	maxBatchRows  = 16 << 10
	maxBatchBytes = 1 << 20 // on the wire
)

// errStale says that the server describes the statement otherwise than it did before.
var errStale = errors.New("the statement's description is out of date")

// misfitError is a misfit in one column.
type misfitError struct {
	col  int
	what string
}

func (m *misfitError) Error() string { return m.what }

// run is one execution of a statement on one connection, for one parameter row or several.
//
// What it sends comes in groups that each end in a Sync. The first holds BEGIN where
// there is a transaction, Parse, Describe and the first Binds and Executes. Where the
// user's next query may see what a rollback leaves (keeps), the last group ends in
// ROLLBACK; elsewhere a group that resets the session follows it, in the same write where
// the source is read-only. The server skips the rest of a group after an error: settle
// then sends what ends the transaction.
type run struct {
	db     *database
	c      *conn
	pooled bool
	desc   *description
	sql    string
	params *binder
	// ownsParams is set once a reader has the run, which closes them then.
	ownsParams bool
	ctx        context.Context
	started    time.Time
	stop       func() bool // ends the watch over ctx
	p          *pgconn.Pipeline
	cols       []column

	rr       *pgconn.ResultReader // the result being read
	atFirst  bool                 // the library has its first row, if there is one
	pending  int                  // results of this group that are to come
	open     bool                 // a group's Sync is to come
	last     bool                 // the last group was sent
	user     string               // whose query it is
	keeps    bool                 // the session keeps its past for the user
	cleaning bool                 // a group that discards another user's past was sent
	inTx     bool                 // BEGIN was sent
	resetOut bool                 // the reset was sent
	answered bool                 // the server has answered anything
	// describing is set on a run that did not get past the description.
	describing bool
	learnt     bool // a column comes as text from now on
	rows       int64
	affected   int64 // -1: the server did not say
}

// begin sends the first group. The connection is the run's from now on.
func (db *database) begin(ctx context.Context, c *conn, user, sql string, desc *description, params *binder) (*run, error) {
	x := &run{db: db, c: c, user: user, desc: desc, sql: sql, params: params, ctx: ctx, affected: -1}
	x.keeps = db.cfg.readOnly && user != "" && !desc.lingers
	x.cols = make([]column, 0, len(desc.columns))
	for _, pl := range desc.columns {
		x.cols = append(x.cols, pl.col())
	}
	nc := c.pg.Conn()
	x.stop = context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	x.p = c.pg.StartPipeline(context.Background())
	if err := x.sendGroup(true); err != nil {
		return x, err
	}
	return x, x.readPreamble()
}

// sendGroup sends the next parameter rows.
func (x *run) sendGroup(first bool) error {
	rows, last, err := x.params.chunk(x.desc.params)
	if err != nil {
		return err
	}
	if first {
		x.sendPreamble(last && len(rows) <= 1)
	}
	for _, r := range rows {
		x.p.SendQueryStatement(x.desc.stmt, r.values, r.formats, x.desc.formats)
	}
	x.pending, x.open, x.last = len(rows), true, last
	switch {
	case last && x.keeps:
		x.p.SendQueryParams("rollback", nil, nil, nil, nil)
	case last && x.inTx && !x.db.cfg.readOnly:
		x.p.SendQueryParams("commit", nil, nil, nil, nil)
	}
	x.p.SendPipelineSync()
	if last && x.db.cfg.readOnly && !x.keeps {
		x.sendReset()
	}
	return x.p.Flush()
}

// sendPreamble sends BEGIN and the statement itself. BEGIN is text each time: a
// prepared one could be replaced by the statement of a malicious user. A single
// execution on a writable source is a transaction without it.
func (x *run) sendPreamble(single bool) {
	if x.c.unclean {
		x.p.SendQueryParams(discardAll, nil, nil, nil, nil)
		x.p.SendPipelineSync()
		x.cleaning = true
	}
	switch {
	case x.db.cfg.readOnly:
		x.p.SendQueryParams("begin read only", nil, nil, nil, nil)
		x.inTx = true
	case !single:
		x.p.SendQueryParams("begin", nil, nil, nil, nil)
		x.inTx = true
	}
	x.p.SendPrepare("", x.sql, nil)
}

// sendReset ends the transaction, if one is open, and brings the session back to where
// it was at sign-in. The answer is read when the connection is used again.
func (x *run) sendReset() {
	if x.db.cfg.readOnly && !x.keeps || x.c.pg.TxStatus() != 'I' {
		x.p.SendQueryParams("rollback", nil, nil, nil, nil)
	}
	x.p.SendQueryParams(discardAll, nil, nil, nil, nil)
	x.p.SendPipelineSync()
	x.resetOut = true
}

// readCleaning reads the answer to the reset that went ahead. That it fails is no error
// of the query's, and ends the connection.
func (x *run) readCleaning() error {
	for range 2 {
		if _, err := x.p.GetResults(); err != nil {
			return resetError(err)
		}
	}
	x.c.forget()
	return nil
}

// resetError makes an error of a reset other than the query's own. That the server
// is gone is left as it is: another connection will do.
func resetError(err error) error {
	if said := serverSaid(err); said != nil && !isGoodbye(said) {
		return fmt.Errorf("reset the session: %v", err)
	}
	return err
}

// readPreamble reads the answers to BEGIN and Parse.
func (x *run) readPreamble() error {
	if x.cleaning {
		if err := x.readCleaning(); err != nil {
			return err
		}
	}
	if x.inTx {
		if _, err := x.results(); err != nil {
			return err
		}
	}
	res, err := x.results()
	if err != nil {
		return err
	}
	sd, ok := res.(*pgconn.StatementDescription)
	if !ok {
		return fmt.Errorf("unexpected %T in place of a description", res)
	}
	if !x.desc.same(sd) {
		return errStale
	}
	return nil
}

func (x *run) results() (any, error) {
	res, err := x.p.GetResults()
	if err == nil {
		x.answered = true
	} else if pgErr := serverSaid(err); pgErr != nil && !isGoodbye(pgErr) {
		x.answered = true
	}
	return res, err
}

// serverSaid is the server's own error in err, nil if there is none.
func serverSaid(err error) *pgconn.PgError {
	if err == nil {
		return nil
	}
	var pgErr *pgconn.PgError
	errors.As(err, &pgErr)
	return pgErr
}

// isGoodbye reports whether the server ended the session for its own reasons, as it
// tells connections that it closes when it shuts down.
func isGoodbye(e *pgconn.PgError) bool {
	return e.Code == "57P01" || e.Code == "57P02" || e.Code == "57P03"
}

// next goes to the next result; io.EOF after the last, once the server has confirmed
// the end, and the commit.
func (x *run) next() error {
	for x.pending == 0 {
		if x.open {
			if err := x.endGroup(); err != nil {
				return err
			}
		}
		if x.last {
			return io.EOF
		}
		if err := x.sendGroup(false); err != nil {
			return err
		}
	}
	res, err := x.results()
	if err != nil {
		return err
	}
	rr, ok := res.(*pgconn.ResultReader)
	if !ok {
		return fmt.Errorf("unexpected %T in place of a result", res)
	}
	x.rr, x.atFirst = rr, true
	x.pending--
	return nil
}

// endGroup reads up to the answer to Sync: a deferred constraint can fail there still.
func (x *run) endGroup() error {
	for {
		res, err := x.results()
		if err != nil {
			return err
		}
		switch res.(type) {
		case *pgconn.PipelineSync:
			x.open = false
			return nil
		case *pgconn.ResultReader: // of COMMIT
		default:
			return fmt.Errorf("unexpected %T in place of the end", res)
		}
	}
}

// endResult reads the present result's end. A result without CommandComplete never
// comes this far.
func (x *run) endResult() error {
	tag, err := x.rr.Close()
	x.rr = nil
	if err != nil {
		return err
	}
	s := tag.String()
	if s == "" {
		return errs.New(errs.Invalid, "the query is empty").WithStep(errs.StepExecute).On(x.db.cfg.object, "")
	}
	if s[len(s)-1] >= '0' && s[len(s)-1] <= '9' {
		x.affected = max(x.affected, 0) + tag.RowsAffected()
	}
	return nil
}

// fill decodes rows until a batch is full, the end (io.EOF) or an error.
func (x *run) fill() (rows int, err error) {
	for bytes := 0; rows < maxBatchRows && bytes < maxBatchBytes; {
		if x.rr == nil {
			if err := x.next(); err != nil {
				return rows, err
			}
		}
		if !x.atFirst {
			if b := x.c.in.rows(len(x.cols), maxBatchRows-rows, maxBatchBytes-bytes); b.rows > 0 {
				if err := x.decodeBlock(b); err != nil {
					return rows, err
				}
				bytes += b.size
				rows += b.rows
				continue
			}
		}
		x.atFirst = false
		if !x.rr.NextRow() {
			if err := x.endResult(); err != nil {
				return rows, err
			}
			continue
		}
		n, err := x.decode(x.rr.Values())
		if err != nil {
			return rows, err
		}
		bytes += n
		rows++
		x.rows++
	}
	return rows, nil
}

// decodeBlock appends rows by the column. In the end, x.rows is right up to the first
// row with a value that does not go in.
func (x *run) decodeBlock(b block) error {
	rows, failed := b.rows, error(nil)
	for i, c := range x.cols {
		if n, err := c.appendBlock(b.bytes, b.column(i, rows)); err != nil {
			rows, failed = n, x.columnError(i, err)
		}
	}
	x.rows += int64(rows)
	return failed
}

func (x *run) decode(values [][]byte) (bytes int, err error) {
	if len(values) != len(x.cols) {
		return 0, fmt.Errorf("a row of %d values for %d columns", len(values), len(x.cols))
	}
	for i, v := range values {
		if err := x.cols[i].append(v); err != nil {
			return 0, x.columnError(i, err)
		}
		bytes += len(v) + 4
	}
	return bytes, nil
}

func (x *run) columnError(col int, err error) error {
	var m *misfit
	if errors.As(err, &m) {
		return &misfitError{col, m.what}
	}
	return fmt.Errorf("column %q: %w", x.desc.schema.Field(col).Name, err)
}

// drain runs to the end without decoding.
func (x *run) drain() error {
	for {
		if err := x.next(); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		for x.rr.NextRow() {
			x.rows++
		}
		if err := x.endResult(); err != nil {
			return err
		}
	}
}

// end gives the connection back: to the pool if the server has answered everything
// and the session is being reset, else it is ended, and the statement with it.
func (x *run) end(err error) {
	if x.ownsParams {
		x.params.close()
	}
	x.learn(err)
	untouched := x.stop()
	if untouched && !x.leavesTraces() && x.settle(err) == nil && x.handOver() == nil {
		x.c.pool.release(x.c)
		return
	}
	x.c.pool.discard(x.c)
}

func (x *run) leavesTraces() bool {
	if x.desc == nil {
		return leavesTraces(x.sql)
	}
	return x.desc.traces
}

// handOver leaves the connection to its next user: with the answer to a reset to be
// read, or else with a past.
func (x *run) handOver() error {
	switch {
	case x.describing: // nothing was run
		return nil
	case x.resetOut:
		x.c.resetting = x.p
		x.c.forget()
		return nil
	}
	if x.c.past.IsZero() {
		x.c.past, x.c.user = x.started, x.user
	}
	return x.p.Close()
}

// learn remembers that a column has values that its type does not hold.
func (x *run) learn(err error) {
	if err == nil || len(x.sql) > maxDescribedSQL {
		return
	}
	var m *misfitError
	if !errors.As(err, &m) {
		return
	}
	if _, already := x.desc.text[m.col]; !already {
		x.learnt = true
		x.db.descs.put(x.sql, x.desc.withText(x.sql, m.col, m.what, x.db.planner()))
	}
}

// settle reads to the end of the present group after an error of the server's, and
// sends the reset if it has not gone out.
func (x *run) settle(err error) error {
	if err != nil && serverSaid(err) == nil || x.c.pg.IsClosed() {
		return errors.New("not at a known point of the protocol")
	}
	for x.open {
		res, err := x.p.GetResults()
		if err != nil && serverSaid(err) == nil {
			return err
		}
		if _, done := res.(*pgconn.PipelineSync); done {
			x.open = false
		} else if err == nil && res == nil {
			return errors.New("no end of the group")
		}
	}
	switch {
	case x.resetOut, x.describing:
		return nil
	case err == nil && x.keeps && x.c.pg.TxStatus() == 'I':
		return nil
	}
	x.sendReset()
	return x.p.Flush()
}
