package service

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/fleet"
	"github.com/sluice-gateway/sluice/internal/ident"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// maxErrorBody bounds what is read of a member's error answer, in bytes.
const maxErrorBody = 64 << 10

// target is a data source on its way to a member.
type target struct {
	uid     string // of the data source
	source  memberapi.Source
	gateway fleet.GatewayRef
	spec    *core.Gateway
}

// target finds a data source, its gateway and its credentials.
func (s *Service) target(ctx context.Context, t core.TenantID, name string) (target, error) {
	if name == "" {
		return target{}, errs.New(errs.Invalid, "the query names no data source").WithStep(errs.StepAdmit)
	}
	sn, err := s.snap(ctx, t)
	if err != nil {
		return target{}, err
	}
	stored, err := sn.find(core.KindDataSource, name)
	if err != nil {
		return target{}, errs.As(err).WithStep(errs.StepAdmit).WithHint("\"sluice get datasources\" lists them")
	}
	ds := stored.Spec.(*core.DataSource)
	gw, err := sn.find(core.KindGateway, ds.Gateway)
	if err != nil {
		return target{}, errs.As(err).WithStep(errs.StepAdmit)
	}
	out := target{
		uid: stored.UID,
		source: memberapi.Source{
			Name: ds.Name, Type: ds.Type, Parameters: ds.Parameters, ReadOnly: ds.IsReadOnly(),
			Credential: ds.Credentials.Kind, Username: ds.Credentials.Username,
			DNSServers: core.DNSServers(ds.DNSServers),
		},
		gateway: fleet.GatewayRef{Tenant: t, Name: ds.Gateway, UID: gw.UID},
		spec:    gw.Spec.(*core.Gateway),
	}
	if sealed, ok := sn.secrets[stored.UID]; ok {
		secret, err := s.opts.Sealer.Open(sealed, string(t), stored.UID, passwordField)
		if err != nil {
			return target{}, errs.New(errs.Internal, "the stored credentials of DataSource/%s can't be opened: %w", name, err).
				WithStep(errs.StepAdmit).WithHint("was the key file of the data directory replaced? Apply the data source with its password again")
		}
		out.source.Password = secret.Reveal()
	}
	return out, nil
}

// Query implements Frontend.
func (s *Service) Query(ctx context.Context, in QueryInput) (*Result, error) {
	return s.run(ctx, in.Source, in, func(id string, src memberapi.Source, b bounds) (string, any) {
		return memberapi.PathQuery, memberapi.QueryRequest{
			QueryID: id, Source: src, Session: session(ctx), SQL: in.SQL, Params: in.Params, Update: in.Update,
			MaxRows: b.maxRows, TimeoutMS: b.timeout.Milliseconds(),
		}
	})
}

// session names the principal to a member (memberapi.QueryRequest.Session) without
// saying who it is. The parts are quoted, so that no two principals run into one.
func session(ctx context.Context) string {
	p, err := core.PrincipalFrom(ctx)
	if err != nil || p.Name == "" {
		return ""
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "session %q %q %q", p.Tenant, p.Name, p.Role))
	return hex.EncodeToString(sum[:16])
}

// withGrace is the service's own bound of a query: a little more than the member's, so
// that the member's error, which names the step, comes first.
func withGrace(d time.Duration) time.Duration {
	return d + min(d/10, 250*time.Millisecond)
}

// Metadata implements Frontend.
func (s *Service) Metadata(ctx context.Context, source string, req memberapi.MetadataRequest) (*Result, error) {
	in := QueryInput{Source: source, SQL: "-- metadata: " + req.Kind}
	return s.run(ctx, source, in, func(id string, src memberapi.Source, _ bounds) (string, any) {
		req.QueryID, req.Source, req.Session = id, src, session(ctx)
		return memberapi.PathMetadata, req
	})
}

// checkSQL refuses what no data source takes, and what would break its protocol's framing.
func checkSQL(sql string) error {
	if at := strings.IndexByte(sql, 0); at >= 0 {
		return errs.New(errs.Invalid, "the SQL holds a NUL character, the %d. byte", at+1).On("", "sql").WithStep(errs.StepAdmit).
			WithHint("is it text in another encoding, such as UTF-16? UTF-8 is expected")
	}
	return nil
}

// Prepare implements Frontend.
func (s *Service) Prepare(ctx context.Context, in QueryInput) (memberapi.PrepareResponse, error) {
	var out memberapi.PrepareResponse
	if err := checkSQL(in.SQL); err != nil {
		return out, err
	}
	err := s.ask(ctx, in.Source, core.ClassInteractive, memberapi.PathPrepare, func(src memberapi.Source) any {
		return memberapi.QueryRequest{QueryID: ident.New("p"), Source: src, Session: session(ctx), SQL: in.SQL, TimeoutMS: in.Timeout.Milliseconds()}
	}, &out)
	return out, err
}

// TestDataSource implements Frontend.
func (s *Service) TestDataSource(ctx context.Context, name string) (memberapi.TestResponse, error) {
	var out memberapi.TestResponse
	err := s.ask(ctx, name, "", memberapi.PathTest, func(src memberapi.Source) any {
		return memberapi.SourceRequest{Source: src, TimeoutMS: (30 * time.Second).Milliseconds()}
	}, &out)
	var no *denial
	if errors.As(err, &no) {
		return memberapi.TestResponse{Steps: no.steps()}, nil
	}
	n := len(out.Steps)
	switch {
	case err != nil || n == 0:
	case out.Steps[n-1].Error != "":
		s.explainStep(ctx, name, &out.Steps[n-1])
	default:
		s.reachable(ctx, name)
	}
	return out, err
}

// ask sends a request whose answer is one JSON document. Without a class it takes no slot.
func (s *Service) ask(ctx context.Context, source string, class core.QueryClass, path string, body func(memberapi.Source) any, out any) error {
	p, err := caller(ctx)
	if err != nil {
		return err
	}
	tgt, err := s.target(ctx, p.Tenant, source)
	if err != nil {
		return err
	}
	if path != memberapi.PathTest {
		if err := s.breakers.allow(tgt); err != nil {
			return err
		}
	}
	req := tgt.request(p, class)
	grant, resp, err := s.send(ctx, tgt, req, unrecorded{}, path, body(tgt.source))
	if err != nil {
		err = s.explain(ctx, p.Tenant, grant.Member, tgt.source, err)
	}
	if path != memberapi.PathTest {
		s.breakers.learn(tgt, err)
	}
	if err != nil {
		return err
	}
	defer grant.Release()
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return errs.New(errs.Unavailable, "member %s answered incompletely: %w", grant.Member.ID, err).WithStep(errs.StepTunnel)
	}
	_, _ = io.Copy(io.Discard, resp.Body) // the connection can be used again
	return nil
}

// post sends a request to a member and returns an answer with status 200.
func (s *Service) post(ctx context.Context, m core.Member, path string, body any) (*http.Response, error) {
	rt, err := s.opts.Tunnels.RoundTripper(m.ID, m.Generation)
	if err != nil {
		return nil, &notSentError{err}
	}
	doc, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://member"+path, bytes.NewReader(doc))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return nil, s.lost(ctx, m, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, memberError(m, resp)
}

// notSentError says that a request never left: it can go to another member.
type notSentError struct{ error }

// Unwrap gives the cause.
func (e *notSentError) Unwrap() error { return e.error }

// Bounds on trying again what never left: a tunnel that is lost counts as lost after
// a moment only, and may be back before.
const (
	resendWait  = 50 * time.Millisecond
	resendBound = 10 * time.Second
)

// send takes a member and posts a request to it, again if it never left, and once more if
// the member was lost before it answered and the request may run twice. What the rules are
// certain to deny is not sent.
func (s *Service) send(ctx context.Context, tgt target, req fleet.Request, j journey, path string, body any) (fleet.Grant, *http.Response, error) {
	deadline := s.now().Add(resendBound)
	for first := true; ; {
		grant, err := s.opts.Fleet.Admit(ctx, req)
		if err != nil {
			return grant, nil, err
		}
		j.granted(grant)
		ended, err := s.admit(ctx, tgt.gateway.Tenant, grant, tgt, path == memberapi.PathTest)
		if err != nil {
			grant.Release()
			return grant, nil, err
		}
		resp, err := s.post(ctx, grant.Member, path, body)
		if err == nil {
			grant.Work.Answered()
			release := grant.Release
			grant.Release = func() { ended(nil); release() }
			return grant, resp, nil
		}
		ended(err)
		grant.Release()
		req.Avoid = grant.Member.ID
		if first && ctx.Err() == nil && mayRunAgain(tgt, err) {
			first = false
			j.again(grant.Member, err)
			continue
		}
		var unsent *notSentError
		if !errors.As(err, &unsent) || s.now().After(deadline) {
			return grant, nil, err
		}
		select {
		case <-ctx.Done():
			return grant, nil, tunnelError(ctx, grant.Member, err)
		case <-time.After(resendWait):
		}
	}
}

// tunnelError turns a failed round trip into what the user needs to know.
func tunnelError(ctx context.Context, m core.Member, err error) error {
	if ctx.Err() != nil {
		e := errs.As(ctx.Err())
		if e.Class == errs.Timeout {
			return errs.New(errs.Timeout, "the query was not answered in time").WithStep(errs.StepExecute).
				WithHint("give it more time with --timeout, or make it cheaper")
		}
		return errs.New(e.Class, "the client went away: %w", ctx.Err()).WithStep(errs.StepExecute)
	}
	if e := errs.As(err); e.Class != errs.Internal {
		return e
	}
	return errs.New(errs.Unavailable, "the connection to member %s was lost: %w", m.ID, err).WithStep(errs.StepTunnel)
}

// withFate adds to an error of a broken connection why the member ended, if it did.
func (s *Service) withFate(ctx context.Context, m core.Member, err error) error {
	e := errs.As(err)
	if e.Class != errs.Unavailable || e.Step != errs.StepTunnel && e.Step != errs.StepStream {
		return err
	}
	fate := s.opts.Fleet.Fate(ctx, m.ID, m.Generation)
	if fate == "" {
		return err
	}
	out := *e
	out.Message += ": the member ended: " + fate
	if strings.HasPrefix(fate, outOfMemory) {
		out.Hint = fmt.Sprintf("a larger size.memoryMiB for gateway %s, or a query with smaller values", m.Gateway)
	}
	return &out
}

// memberError reads the error that a member answered with.
func memberError(m core.Member, resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	var e errs.Error
	if err == nil && json.Unmarshal(body, &e) == nil && e.Message != "" {
		_, _ = io.Copy(io.Discard, resp.Body)
		return &e
	}
	return errs.New(errs.Internal, "member %s answered with status %d and no reason", m.ID, resp.StatusCode).WithStep(errs.StepTunnel)
}

// run sends a request whose answer is a result, and keeps its record.
func (s *Service) run(ctx context.Context, source string, in QueryInput, body bodyOf) (*Result, error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	q := s.begin(p, source, in)
	res, err := s.execute(ctx, p, q, source, in, body)
	if err != nil {
		q.finish(err)
		return nil, &QueryError{QueryID: q.rec.ID, Err: errs.As(err)}
	}
	return res, nil
}

// execute is the way of one query from the data source's name to the first byte.
func (s *Service) execute(ctx context.Context, p core.Principal, q *running, source string, in QueryInput, body bodyOf) (*Result, error) {
	if err := checkSQL(in.SQL); err != nil {
		return nil, err
	}
	tgt, err := s.target(ctx, p.Tenant, source)
	if err != nil {
		return nil, err
	}
	q.rec.Gateway = tgt.gateway.Name
	if err := s.breakers.allow(tgt); err != nil {
		return nil, err
	}
	req := tgt.request(p, q.rec.Class)
	b := boundsOf(in, req.Limits)
	ctx, cancel := b.context(ctx)
	q.stop, req.ID, req.Statement, req.Queued, req.Cut = cancel, q.rec.ID, statement(in), q.queued(req), q.cut
	s.inFlight.put(q)
	path, doc := body(q.rec.ID, tgt.source, b)
	grant, resp, err := s.send(ctx, tgt, req, q, path, doc)
	if err != nil {
		err = q.because(s.explain(ctx, p.Tenant, grant.Member, tgt.source, err))
	}
	s.breakers.learn(tgt, err)
	if err != nil {
		cancel()
		return nil, err
	}
	q.answered()
	out := &resultBody{ctx: ctx, resp: resp, member: grant.Member, work: grant.Work, why: func(err error) error { return q.because(s.withFate(ctx, grant.Member, err)) }}
	return &Result{QueryID: q.rec.ID, Body: out, Stall: b.stall, Finish: func(err error) core.Query {
		_ = out.Close() // it has nothing to say
		cancel()
		grant.Release()
		q.streamed(out)
		return q.finish(q.because(err))
	}}, nil
}

// QueryError is an error of a query that has a record.
type QueryError struct {
	QueryID string
	Err     *errs.Error
}

// Error implements error.
func (e *QueryError) Error() string { return e.Err.Error() }

// Unwrap gives the classified error.
func (e *QueryError) Unwrap() error { return e.Err }

// eosMarker ends a whole Arrow IPC stream.
var eosMarker = []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}

// resultBody is a member's stream that ends in io.EOF only if the result is whole.
type resultBody struct {
	ctx    context.Context
	resp   *http.Response
	member core.Member
	work   *fleet.Work
	why    func(error) error // adds why the member ended, or who cancelled
	tail   [8]byte           // the last bytes read
	bytes  int64
	end    error // what Read returns from now on
	stats  memberapi.Stats
	closed bool
}

// Read implements io.Reader.
func (b *resultBody) Read(p []byte) (int, error) {
	if b.end != nil {
		return 0, b.end
	}
	b.work.Reads()
	n, err := b.resp.Body.Read(p)
	b.keepTail(p[:n])
	b.bytes += int64(n)
	b.work.Streamed(n)
	if err == nil {
		return n, nil
	}
	b.end = b.verdict(err)
	return n, b.end
}

// Arrived reports whether what is left of the result is here already: a front end that
// has sent nothing yet can then send all of it at once.
func (b *resultBody) Arrived() bool {
	if b.end != nil {
		return true
	}
	body, ok := b.resp.Body.(interface{ Arrived() bool })
	return ok && body.Arrived()
}

func (b *resultBody) keepTail(p []byte) {
	if len(p) >= len(b.tail) {
		copy(b.tail[:], p[len(p)-len(b.tail):])
		return
	}
	copy(b.tail[:], b.tail[len(p):])
	copy(b.tail[len(b.tail)-len(p):], p)
}

// verdict decides what the end of the body means.
func (b *resultBody) verdict(err error) error {
	if !errors.Is(err, io.EOF) {
		return b.lost(err)
	}
	_ = json.Unmarshal([]byte(b.resp.Trailer.Get(memberapi.TrailerStats)), &b.stats)
	if doc := b.resp.Trailer.Get(memberapi.TrailerError); doc != "" {
		var e errs.Error
		if json.Unmarshal([]byte(doc), &e) == nil && e.Message != "" {
			return &e
		}
	}
	if b.resp.Trailer.Get(memberapi.TrailerStatus) != memberapi.StatusOK || !bytes.Equal(b.tail[:], eosMarker) {
		return errs.New(errs.Unavailable, "member %s ended the result without saying that it is whole", b.member.ID).WithStep(errs.StepStream)
	}
	return io.EOF
}

func (b *resultBody) lost(err error) error {
	if b.ctx.Err() != nil {
		if e := errs.As(b.ctx.Err()); e.Class == errs.Timeout {
			return errs.New(errs.Timeout, "the result was not complete in time").WithStep(errs.StepStream).
				WithHint("give the query more time with --timeout")
		}
		return b.why(errs.New(errs.Cancelled, "the client went away: %w", b.ctx.Err()).WithStep(errs.StepStream))
	}
	return b.why(errs.New(errs.Unavailable, "the connection to member %s was lost after %d bytes of the result: %s",
		b.member.ID, b.bytes, strings.TrimPrefix(err.Error(), "http: ")).WithStep(errs.StepStream))
}

// Close implements io.Closer. Before the end it cuts the connection, which cancels
// the query in the member.
func (b *resultBody) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	if b.end == nil {
		b.end = fmt.Errorf("the result was closed: %w", io.ErrClosedPipe)
	}
	return b.resp.Body.Close()
}
