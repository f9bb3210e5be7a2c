// Package frontendtest is a service.Frontend in memory, for the tests of the front
// ends: what it answers is set per SQL text, as real Arrow IPC bytes.
//
// It keeps what it was asked, which results are open and how each ended. Only tests
// import it.
package frontendtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/fleet"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/service"
)

// Token is the token of Admin, and OtherToken that of Other.
const (
	Token      = "sluice_good"
	OtherToken = "sluice_other"
)

// Admin and Other are the principals that the fake knows.
var (
	Admin = core.Principal{Tenant: core.DefaultTenant, Name: "admin", Role: core.RoleAdmin}
	Other = core.Principal{Tenant: core.DefaultTenant, Name: "other", Role: core.RoleAdmin}
)

// Answer is what a statement, or a kind of metadata, gives.
type Answer struct {
	Err error // before the first byte
	// Head, then Batch Repeat times, then Tail are the bytes of the result.
	Head, Batch, Tail []byte
	Repeat            int
	Then              error // in place of io.EOF
	// Block keeps the result open after its last byte, until the context ends.
	Block    bool
	Linger   time.Duration // from the end of the context to the error that Read returns
	Panic    bool          // the call ends in a panic
	Prepared memberapi.PrepareResponse
}

// Whole is an Answer with a stream as it is.
func Whole(stream []byte) Answer { return Answer{Head: stream} }

// Front is the fake. Source "orders" exists; others don't.
type Front struct {
	mu       sync.Mutex
	answers  map[string]Answer
	queries  []service.QueryInput
	users    []string
	metadata []memberapi.MetadataRequest
	applied  [][]service.Document
	calls    []string
	finished map[string]error
	prepares int
	next     int
	views    map[string][]service.View
	fail     map[string]error
	ready    error
	produced int64
}

var _ service.Frontend = (*Front)(nil)

// New returns a fake without answers.
func New() *Front {
	return &Front{
		answers: map[string]Answer{}, finished: map[string]error{},
		views: map[string][]service.View{}, fail: map[string]error{},
	}
}

// On sets the answer to a statement, or to "metadata:" and a kind.
func (f *Front) On(sql string, a Answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[sql] = a
}

// Show sets what List and Get give for a kind.
func (f *Front) Show(kind string, views ...service.View) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.views[kind] = views
}

// Fail makes a method, by its name, return err.
func (f *Front) Fail(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail[method] = err
}

// SetReady sets what Ready returns.
func (f *Front) SetReady(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ready = err
}

// Queries returns the statements that were run, in order.
func (f *Front) Queries() []service.QueryInput {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]service.QueryInput(nil), f.queries...)
}

// Users returns who ran them.
func (f *Front) Users() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.users...)
}

// MetadataRequests returns the requests for metadata.
func (f *Front) MetadataRequests() []memberapi.MetadataRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]memberapi.MetadataRequest(nil), f.metadata...)
}

// Applied returns the documents of each apply.
func (f *Front) Applied() [][]service.Document {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([][]service.Document(nil), f.applied...)
}

// Calls returns the other calls, as "Method argument …".
func (f *Front) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.calls...)
}

// Prepares is how often Prepare was called.
func (f *Front) Prepares() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.prepares
}

// Finished returns how each query that ended did.
func (f *Front) Finished() map[string]error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.finished)
}

// Open is how many results were given and not finished.
func (f *Front) Open() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.next - len(f.finished)
}

// Produced is how many bytes of results were read.
func (f *Front) Produced() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.produced
}

// Settled waits until no more is produced, which means that all on the way to the client is
// full, or that there is no more, and returns how much was.
func (f *Front) Settled() int64 {
	for before := int64(-1); ; time.Sleep(500 * time.Millisecond) {
		now := f.Produced()
		if now == before {
			return now
		}
		before = now
	}
}

// WaitClosed waits until no result is open, and returns false if one stays.
func (f *Front) WaitClosed(bound time.Duration) bool {
	for deadline := time.Now().Add(bound); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if f.Open() == 0 {
			return true
		}
	}
	return false
}

func (f *Front) begin(ctx context.Context, source, key string) (*service.Result, error) {
	p, err := core.PrincipalFrom(ctx)
	if err != nil {
		return nil, errs.New(errs.Unauthenticated, "%w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users = append(f.users, p.Name)
	f.next++
	id := fmt.Sprintf("q%d", f.next)
	a, ok := f.answers[key]
	switch {
	case source != "orders":
		a.Err = errs.New(errs.NotFound, "DataSource/%s does not exist", source).WithHint("\"sluice get datasources\" lists them").WithStep(errs.StepAdmit)
	case !ok:
		a.Err = &errs.Error{Class: errs.Source, Message: "syntax error at or near \"" + key + "\"", SQLState: "42601", Position: 1, Step: errs.StepExecute}
	}
	if a.Panic {
		f.finished[id] = errors.New("panic")
		panic("the fake was told to panic")
	}
	if a.Err != nil {
		f.finished[id] = a.Err
		return nil, &service.QueryError{QueryID: id, Err: errs.As(a.Err)}
	}
	b := &body{ctx: ctx, answer: a, pending: a.Head, front: f}
	return &service.Result{QueryID: id, Body: b, Finish: func(err error) core.Query {
		f.mu.Lock()
		defer f.mu.Unlock()
		if _, twice := f.finished[id]; twice {
			panic("Finish was called twice for " + id)
		}
		f.finished[id] = err
		return core.Query{ID: id}
	}}, nil
}

// Query implements service.Frontend.
func (f *Front) Query(ctx context.Context, in service.QueryInput) (*service.Result, error) {
	f.mu.Lock()
	f.queries = append(f.queries, in)
	f.mu.Unlock()
	return f.begin(ctx, in.Source, in.SQL)
}

// Metadata implements service.Frontend.
func (f *Front) Metadata(ctx context.Context, source string, req memberapi.MetadataRequest) (*service.Result, error) {
	f.mu.Lock()
	f.metadata = append(f.metadata, req)
	f.mu.Unlock()
	return f.begin(ctx, source, "metadata:"+req.Kind)
}

// Prepare implements service.Frontend.
func (f *Front) Prepare(ctx context.Context, in service.QueryInput) (memberapi.PrepareResponse, error) {
	if _, err := core.PrincipalFrom(ctx); err != nil {
		return memberapi.PrepareResponse{}, errs.New(errs.Unauthenticated, "%w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.prepares++
	a, ok := f.answers[in.SQL]
	if !ok {
		return memberapi.PrepareResponse{}, &errs.Error{Class: errs.Source, Message: "syntax error", SQLState: "42601", Step: errs.StepExecute}
	}
	if a.Panic {
		panic("the fake was told to panic")
	}
	return a.Prepared, a.Err
}

// body is the stream of an Answer.
type body struct {
	ctx     context.Context
	answer  Answer
	pending []byte
	repeats int
	tailed  bool
	front   *Front
	end     error
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, errs.New(errs.ClassOf(err), "the client went away: %w", err).WithStep(errs.StepStream)
	}
	if b.end != nil {
		return 0, b.end
	}
	if !b.refill() {
		if b.answer.Block {
			<-b.ctx.Done()
			time.Sleep(b.answer.Linger)
			return b.Read(p)
		}
		if b.end = b.answer.Then; b.end == nil {
			b.end = io.EOF
		}
		return 0, b.end
	}
	n := copy(p, b.pending)
	b.pending = b.pending[n:]
	b.front.mu.Lock()
	b.front.produced += int64(n)
	b.front.mu.Unlock()
	return n, nil
}

func (b *body) refill() bool {
	for len(b.pending) == 0 {
		switch {
		case b.repeats < b.answer.Repeat:
			b.repeats++
			b.pending = b.answer.Batch
		case !b.tailed:
			b.tailed = true
			b.pending = b.answer.Tail
		default:
			return false
		}
	}
	return true
}

// Close implements io.Closer.
func (b *body) Close() error { return nil }

func (f *Front) call(ctx context.Context, method string, args ...any) error {
	if _, err := core.PrincipalFrom(ctx); err != nil {
		return errs.New(errs.Unauthenticated, "%w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprint(append([]any{method}, args...)...))
	return f.fail[method]
}

// Apply implements service.Frontend.
func (f *Front) Apply(ctx context.Context, docs []service.Document, dryRun bool) ([]service.Applied, error) {
	if err := f.call(ctx, "Apply", " ", dryRun); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied = append(f.applied, docs)
	out := make([]service.Applied, len(docs))
	for i, d := range docs {
		out[i] = service.Applied{Kind: d.Kind, Name: fmt.Sprint("doc", i), Change: core.Created}
	}
	return out, nil
}

// AwaitHosts implements service.Frontend.
func (f *Front) AwaitHosts(ctx context.Context, most time.Duration) ([]fleet.Acting, error) {
	return []fleet.Acting{{Host: "h", Connected: true, Acted: true}}, f.call(ctx, "AwaitHosts", " ", most)
}

// Get implements service.Frontend.
func (f *Front) Get(ctx context.Context, kind, name string) (service.View, error) {
	if err := f.call(ctx, "Get", " ", kind, " ", name); err != nil {
		return service.View{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range f.views[kind] {
		if v.Name == name {
			return v, nil
		}
	}
	return service.View{}, errs.New(errs.NotFound, "%s/%s does not exist", kind, name).On(kind+"/"+name, "")
}

// List implements service.Frontend.
func (f *Front) List(ctx context.Context, kind string) ([]service.View, error) {
	if err := f.call(ctx, "List", " ", kind); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.views[kind], nil
}

// Delete implements service.Frontend.
func (f *Front) Delete(ctx context.Context, kind, name string, how service.DeleteOptions) error {
	if how.Reason != "" {
		return f.call(ctx, "Delete", " ", kind, " ", name, " ", how.Force, " ", how.Reason)
	}
	return f.call(ctx, "Delete", " ", kind, " ", name, " ", how.Force)
}

// RenewToken implements service.Frontend.
func (f *Front) RenewToken(ctx context.Context) (core.Secret, error) {
	return core.NewSecret("sluice_renewed"), f.call(ctx, "RenewToken")
}

// DeleteAll implements service.Frontend.
func (f *Front) DeleteAll(ctx context.Context, in service.DeleteSet) ([]service.Applied, error) {
	out := make([]service.Applied, len(in.Objects))
	for i, o := range in.Objects {
		out[i] = service.Applied{Kind: o.Kind, Name: o.Name, Change: core.Deleted}
	}
	return out, f.call(ctx, "DeleteAll", " ", in.Objects, " ", in.IgnoreMissing, " ", in.Force, " ", in.Reason)
}

// AuditRecords implements service.Frontend.
func (f *Front) AuditRecords(ctx context.Context, limit int) ([]service.View, error) {
	return []service.View{}, f.call(ctx, "AuditRecords", " ", limit)
}

// Wake implements service.Frontend.
func (f *Front) Wake(ctx context.Context, gateway string) error {
	return f.call(ctx, "Wake", " ", gateway)
}

// Pause implements service.Frontend.
func (f *Front) Pause(ctx context.Context, gateway string) error {
	return f.call(ctx, "Pause", " ", gateway)
}

// Restart implements service.Frontend.
func (f *Front) Restart(ctx context.Context, gateway string) error {
	return f.call(ctx, "Restart", " ", gateway)
}

// TestDataSource implements service.Frontend.
func (f *Front) TestDataSource(ctx context.Context, name string) (memberapi.TestResponse, error) {
	return memberapi.TestResponse{Steps: []memberapi.TestStep{{Name: errs.StepResolve, Detail: "10.20.1.4"}}}, f.call(ctx, "TestDataSource", " ", name)
}

// Check implements service.Frontend.
func (f *Front) Check(ctx context.Context, in core.Check) (core.CheckResult, error) {
	return core.CheckResult{Source: "10.20.0.4", Destination: in.Host, Allowed: true, Reasons: []string{}}, f.call(ctx, "Check", " ", in.Gateway, " ", in.Port)
}

// QueryRecord implements service.Frontend.
func (f *Front) QueryRecord(ctx context.Context, id string) (core.Query, error) {
	return core.Query{ID: id}, f.call(ctx, "QueryRecord", " ", id)
}

// CancelQuery implements service.Frontend.
func (f *Front) CancelQuery(ctx context.Context, id string) error {
	return f.call(ctx, "CancelQuery", " ", id)
}

// QueryRecords implements service.Frontend.
func (f *Front) QueryRecords(ctx context.Context, source string, limit int) ([]core.Query, error) {
	return []core.Query{{ID: "q1", Source: source, State: core.QuerySucceeded}}, f.call(ctx, "QueryRecords", " ", source, " ", limit)
}

// Authenticate implements service.Frontend.
func (f *Front) Authenticate(_ context.Context, token string) (core.Principal, error) {
	switch token {
	case Token:
		return Admin, nil
	case OtherToken:
		return Other, nil
	}
	return core.Principal{}, errs.New(errs.Unauthenticated, "the token is not known")
}

// Ready implements service.Frontend.
func (f *Front) Ready(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ready
}
