package gateway

import (
	"context"
	"net/http"
	"time"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// streaming is a request whose answer is an Arrow stream.
type streaming struct {
	*stream
	stats   memberapi.Stats
	maxRows int64 // 0: no limit
	started time.Time
}

// serveStream runs f, which writes the answer, and ends it: whole if f returns nil.
func (s *Server) serveStream(w http.ResponseWriter, r *http.Request, limit time.Duration, f func(context.Context, *streaming) error) {
	ctx, cancel := bounded(r.Context(), limit)
	defer cancel()
	st := &streaming{stream: newStream(ctx, w)}
	defer st.close()
	err := f(ctx, st)
	if err == nil {
		err = ctx.Err() // a reader may take a cancel for its end
	}
	if err == nil {
		err = st.end()
	}
	st.stats.Rows = st.rows
	st.stats.PeakBytes = peakMemory()
	if !st.started.IsZero() {
		st.stats.Stream = time.Since(st.started)
	}
	if err != nil {
		st.fail(st.stats, explain(ctx, err))
		return
	}
	st.trailers(st.stats, nil)
}

func (s *Server) serveQuery(w http.ResponseWriter, r *http.Request) {
	var req memberapi.QueryRequest
	if err := readRequest(w, r, &req); err != nil {
		writeError(w, err)
		return
	}
	s.serveStream(w, r, timeLimit(req), func(ctx context.Context, st *streaming) error {
		st.maxRows = req.MaxRows
		return s.query(ctx, req, st)
	})
}

// query runs a statement and writes what it gives.
func (s *Server) query(ctx context.Context, req memberapi.QueryRequest, st *streaming) error {
	params, err := readParams(req.Params)
	if err != nil {
		return err
	}
	if params != nil {
		defer params.Release()
	}
	return s.withStatement(ctx, req, &st.stats, func(stmt adbc.Statement) error {
		if params != nil {
			if err := stmt.Bind(ctx, params); err != nil {
				return atStep(errs.StepExecute, err)
			}
		}
		if req.Update {
			return update(ctx, stmt, st)
		}
		return execute(ctx, stmt, st)
	})
}

// withStatement opens the source, a connection and a statement for the request's SQL,
// and closes all of it after f.
func (s *Server) withStatement(ctx context.Context, req memberapi.QueryRequest, stats *memberapi.Stats, f func(adbc.Statement) error) error {
	return s.withConnection(ctx, req.Source, req.Session, stats, func(_ *database, conn adbc.Connection) error {
		stmt, err := conn.NewStatement()
		if err != nil {
			return atStep(errs.StepExecute, err)
		}
		defer s.closing("statement", stmt)
		if err := stmt.SetSqlQuery(req.SQL); err != nil {
			return atStep(errs.StepExecute, err)
		}
		return f(stmt)
	})
}

// withConnection opens the source and a connection to it for a user (QueryRequest.Session),
// and closes both after f.
func (s *Server) withConnection(ctx context.Context, src memberapi.Source, user string, stats *memberapi.Stats, f func(*database, adbc.Connection) error) error {
	db, err := s.databases.acquire(src)
	if err != nil {
		return err
	}
	defer s.databases.release(db)
	start := time.Now()
	conn, err := db.Open(ctx)
	if err != nil {
		return atStep(errs.StepConnect, err)
	}
	defer s.closing("connection", conn)
	stats.Connect = time.Since(start)
	if c, ok := conn.(connector.UserAware); ok {
		c.SetUser(user)
	}
	return f(db, conn)
}

// closing closes what a request used. The answer does not depend on it any more.
func (s *Server) closing(what string, c interface{ Close() error }) {
	if err := c.Close(); err != nil {
		s.log.Warn("a "+what+" did not close cleanly", "error", errs.As(err).Class)
	}
}

// execute runs the statement as a query.
func execute(ctx context.Context, stmt adbc.Statement, st *streaming) error {
	start := time.Now()
	reader, _, err := stmt.ExecuteQuery(ctx)
	st.timings(stmt, time.Since(start))
	if err != nil {
		return atStep(errs.StepExecute, err)
	}
	defer reader.Release()
	return st.copy(ctx, reader)
}

// update runs the statement for its effect.
func update(ctx context.Context, stmt adbc.Statement, st *streaming) error {
	start := time.Now()
	n, err := stmt.ExecuteUpdate(ctx)
	st.timings(stmt, time.Since(start))
	if err != nil {
		return atStep(errs.StepExecute, err)
	}
	b := array.NewInt64Builder(memory.DefaultAllocator)
	defer b.Release()
	b.Append(n)
	column := b.NewArray()
	defer column.Release()
	schema := arrow.NewSchema([]arrow.Field{{Name: "rows", Type: arrow.PrimitiveTypes.Int64}}, nil)
	rec := array.NewRecordBatch(schema, []arrow.Array{column}, 1)
	defer rec.Release()
	if err := st.begin(schema); err != nil {
		return err
	}
	return st.batch(rec)
}

// timings takes over what the connector knows better than the clock outside it.
func (st *streaming) timings(stmt adbc.Statement, execute time.Duration) {
	st.stats.Execute = execute
	if t, ok := stmt.(connector.Timed); ok {
		st.stats.Connect, st.stats.Execute = t.Timings()
	}
	st.started = time.Now()
}

// copy writes everything that reader gives, as it comes.
func (st *streaming) copy(ctx context.Context, reader array.RecordReader) error {
	if st.started.IsZero() {
		st.started = time.Now()
	}
	if err := st.begin(reader.Schema()); err != nil {
		return err
	}
	for reader.Next() {
		rec := reader.RecordBatch()
		if st.maxRows > 0 && st.rows+rec.NumRows() > st.maxRows {
			return errs.New(errs.Exhausted, "the result has more rows than the limit of %d", st.maxRows).
				WithStep(errs.StepStream).WithHint("aggregate or filter in the query, or raise the limit of its class")
		}
		if err := st.batch(rec); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return atStep(errs.StepStream, err)
		}
	}
	return atStep(errs.StepStream, reader.Err())
}
