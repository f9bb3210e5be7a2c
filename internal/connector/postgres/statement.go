package postgres

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// statement is one SQL statement. Like its ADBC contract, it serves one goroutine.
type statement struct {
	db     *database
	user   string // see connection
	sql    string
	params binder
	desc   *description // since Prepare

	connect, execute time.Duration
}

var (
	_ adbc.Statement              = (*statement)(nil)
	_ adbc.StatementExecuteSchema = (*statement)(nil)
	_ connector.Timed             = (*statement)(nil)
)

func (s *statement) Close() error {
	s.params.close()
	return nil
}

func (s *statement) SetOption(key, _ string) error {
	return s.db.notImplemented("the statement option " + key)
}

func (s *statement) SetSqlQuery(sql string) error { //nolint:revive // ADBC's name
	s.sql, s.desc = sql, nil
	return nil
}

func (s *statement) SetSubstraitPlan([]byte) error { return s.db.notImplemented("Substrait plans") }

func (s *statement) Bind(_ context.Context, values arrow.RecordBatch) error {
	s.params.setRecord(values)
	return nil
}

func (s *statement) BindStream(_ context.Context, stream array.RecordReader) error {
	s.params.setStream(stream)
	return nil
}

// Timings implements connector.Timed.
func (s *statement) Timings() (connect, execute time.Duration) { return s.connect, s.execute }

// Prepare asks the server what the statement takes and gives.
func (s *statement) Prepare(ctx context.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	return s.db.withConn(ctx, s.user, func(ctx context.Context, c *conn) (err error) {
		s.desc, err = s.db.describe(ctx, c, s.sql)
		return err
	})
}

// GetParameterSchema follows Prepare.
func (s *statement) GetParameterSchema() (*arrow.Schema, error) {
	if s.desc == nil {
		return nil, errs.New(errs.Invalid, "the statement is not prepared").On(s.db.cfg.object, "")
	}
	return s.db.parameterSchema(s.desc), nil
}

// ExecuteSchema returns the schema of the result without running the statement.
func (s *statement) ExecuteSchema(ctx context.Context) (*arrow.Schema, error) {
	if s.desc == nil {
		if err := s.Prepare(ctx); err != nil {
			return nil, err
		}
	}
	return s.desc.schema, nil
}

func (s *statement) ExecutePartitions(context.Context) (*arrow.Schema, adbc.Partitions, int64, error) {
	return nil, adbc.Partitions{}, -1, s.db.notImplemented("partitioned results")
}

// ExecuteQuery returns when the first batch, the end or an error is known. A statement
// without a result gives an empty schema and no rows.
func (s *statement) ExecuteQuery(ctx context.Context) (array.RecordReader, int64, error) {
	var r *reader
	err := s.attempts(ctx, func(x *run, cancel context.CancelFunc) error {
		first, err := x.batch()
		if err != nil && err != io.EOF {
			return err
		}
		if err == io.EOF {
			x.end(nil)
		} else {
			x.params.forget()
			x.ownsParams = true
		}
		r = newReader(x, cancel, first, err == io.EOF)
		return nil
	})
	if err != nil {
		return nil, -1, err
	}
	return r, -1, nil
}

// ExecuteUpdate runs to the end and returns the number of rows that the server says
// were affected, -1 if it does not say.
func (s *statement) ExecuteUpdate(ctx context.Context) (affected int64, err error) {
	err = s.attempts(ctx, func(x *run, cancel context.CancelFunc) error {
		if err := x.drain(); err != nil {
			return err
		}
		x.end(nil)
		cancel()
		affected = x.affected
		return nil
	})
	if err != nil {
		return -1, err
	}
	return affected, nil
}

// check refuses what the extended protocol cannot carry.
func (s *statement) check() error {
	object := s.db.cfg.object
	switch firstWord(s.sql) {
	case "":
		return errs.New(errs.Invalid, "the query is empty").WithStep(errs.StepExecute).On(object, "")
	case "copy":
		return errs.New(errs.Invalid, "COPY is not supported").
			WithHint("use SELECT to read and INSERT to write").WithStep(errs.StepExecute).On(object, "")
	}
	return nil
}

// attempts runs the statement, again if that is sure to do no harm: see again. consume
// ends the run if it succeeds.
func (s *statement) attempts(ctx context.Context, consume func(*run, context.CancelFunc) error) error {
	if err := s.check(); err != nil {
		return err
	}
	s.connect, s.execute = 0, 0
	params := s.params.share()
	for left := 3; ; left-- {
		x, again, err := s.attempt(ctx, params, left > 0, consume)
		if again {
			params.rewind()
			continue
		}
		if x == nil || !x.ownsParams {
			params.close()
		}
		return err
	}
}

// attempt runs the statement once. again asks for another attempt, if there may be one.
func (s *statement) attempt(ctx context.Context, params *binder, more bool, consume func(*run, context.CancelFunc) error) (x *run, again bool, err error) {
	ctx, cancel := s.db.queryContext(ctx)
	c, dialled, err := s.db.pool.acquire(ctx, s.user)
	if err != nil {
		cancel()
		return nil, false, err
	}
	s.connect += dialled
	start := time.Now()
	x, err = s.start(ctx, c, params)
	x.pooled, x.started = dialled == 0, start
	if err == nil {
		err = consume(x, cancel)
	}
	s.execute = time.Since(start)
	if err == nil {
		return x, false, nil // consume has ended the run, or handed it on
	}
	defer cancel()
	x.end(err)
	if x.again(err) && (more || x.learnt) { // there is an end to the columns
		return x, true, nil
	}
	return x, false, x.userError(err)
}

// start describes the statement, unless that is known, and sends it. On a writable
// source it asks each time: there, to find out by running it would be too late.
func (s *statement) start(ctx context.Context, c *conn, params *binder) (*run, error) {
	desc := s.db.descs.get(s.sql)
	if desc == nil || !s.db.cfg.readOnly {
		now, err := s.describe(ctx, c)
		if err != nil {
			return &run{db: s.db, c: c, sql: s.sql, ctx: ctx, stop: func() bool { return true }, describing: true}, err
		}
		desc = now
	}
	return s.db.begin(ctx, c, s.user, s.sql, desc, params)
}

// describe describes the statement in a session without another user's past.
func (s *statement) describe(ctx context.Context, c *conn) (*description, error) {
	if err := c.discardPast(ctx); err != nil {
		return nil, err
	}
	return s.db.describe(ctx, c, s.sql)
}

// again decides about another attempt after an error before the first batch, and
// learns from it.
func (x *run) again(err error) bool {
	var m *misfitError
	var pgErr *pgconn.PgError
	switch {
	case x.ctx.Err() != nil && !errors.As(err, &m):
		return false
	case err == errStale:
		x.db.descs.drop(x.sql)
		return x.db.cfg.readOnly
	case errors.As(err, &m):
		return x.learnt && x.db.cfg.readOnly
	case errors.As(err, &pgErr) && !isGoodbye(pgErr):
		x.db.descs.drop(x.sql)
		return false
	}
	return x.pooled && !x.answered && (x.describing || x.db.cfg.readOnly) && (pgErr != nil || isLostConnection(err))
}
