package service

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/fleet"
	"github.com/sluice-gateway/sluice/internal/store"
)

// Tunnels reaches members over the connections that they dialled.
type Tunnels interface {
	RoundTripper(member string, generation int64) (http.RoundTripper, error)
}

// Sealer seals credentials at rest. The context binds a sealed value to its place.
type Sealer interface {
	Seal(plain core.Secret, context ...string) ([]byte, error)
	Open(sealed []byte, context ...string) (core.Secret, error)
}

// Options configure a Service.
type Options struct {
	Store   store.Store  // Required
	Sealer  Sealer       // Required
	Tunnels Tunnels      // Required
	Fleet   *fleet.Fleet // Required
	Logger  *slog.Logger // Required
	// HostToken is what hosts join with. Without one no host can join.
	HostToken HostToken
	Now       func() time.Time // Default time.Now
	// KeepQueries is how long query records are kept. Default 30 days.
	KeepQueries time.Duration
	// KeepAudit is how long audit entries are kept. Default DefaultKeepAudit.
	KeepAudit time.Duration
	// RecordSQL says what query records keep of statements. Default RecordFull.
	RecordSQL RecordSQL
	// QuerySink also gets the records of queries that have ended, some at a time. Optional;
	// it is called by one goroutine at a time.
	QuerySink func([]core.Query) error
	// Trace gets each query that has ended, and its client's trace context. Optional.
	Trace func(q core.Query, traceparent string)
}

// RecordSQL says what query records keep of statements.
type RecordSQL string

// The values of RecordSQL.
const (
	RecordFull RecordSQL = "full"
	RecordHash RecordSQL = "hash" // equal statements have equal hashes
	RecordNone RecordSQL = "none"
)

// Service implements Frontend.
type Service struct {
	opts Options
	log  *slog.Logger
	now  func() time.Time

	snapMu    sync.Mutex
	snapEpoch int64 // counts the changes of resources
	snapshots map[core.TenantID]*snapshot
	tokens    sync.Map     // tokenKey → core.Principal
	renewals  atomic.Int64 // of tokens
	queries   *queryLog
	contacts  *contacts
	breakers  *breakers
	inFlight  inFlight
	metrics   *metrics
	stopping  atomic.Bool
}

var _ Frontend = (*Service)(nil)

// New makes a service on what the store holds. Close ends it.
func New(ctx context.Context, opts Options) (*Service, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.KeepQueries == 0 {
		opts.KeepQueries = 30 * 24 * time.Hour
	}
	if opts.KeepAudit == 0 {
		opts.KeepAudit = DefaultKeepAudit
	}
	s := &Service{opts: opts, log: opts.Logger, now: opts.Now, snapshots: map[core.TenantID]*snapshot{}, contacts: newContacts(opts.Now()), breakers: newBreakers(opts.Now), inFlight: inFlight{of: map[string]*running{}}}
	err := opts.Store.Write(ctx, func(tx store.Tx) error {
		n, err := tx.InterruptQueries(s.now(), "the service stopped while the query was running")
		if n > 0 {
			s.log.Warn("queries were interrupted by the end of the last process", "queries", n)
		}
		return err
	})
	if errs.ClassOf(err) == errs.StorageFull { // what runs can go on without it
		s.log.Warn("queries that were interrupted could not be marked", "error", err)
	} else if err != nil {
		return nil, err
	}
	s.metrics = newMetrics(s)
	s.queries = newQueryLog(opts.Store, opts.Logger, opts.KeepQueries, s.purgeAudit, opts.QuerySink)
	return s, nil
}

// Close waits until the query log is written. Front ends must have stopped.
func (s *Service) Close() {
	s.stopping.Store(true)
	s.queries.close()
}

// Ready tells why the service can't serve.
func (s *Service) Ready(ctx context.Context) error {
	if s.stopping.Load() {
		return errs.New(errs.Unavailable, "the service is stopping")
	}
	if err := s.opts.Store.Read(ctx, func(tx store.Tx) error { _, err := tx.CountTokens(); return err }); err != nil {
		return err
	}
	if len(s.opts.Fleet.Hosts()) == 0 {
		return errs.New(errs.Unavailable, "no host is connected")
	}
	return nil
}

// snapshot is a tenant's resources at one moment, so that a query reads no database.
type snapshot struct {
	byName  map[core.Kind]map[string]core.Stored
	all     []core.Stored
	secrets map[string][]byte // sealed passwords, by the data source's UID
	allowed sync.Map          // flowKey → true: flows that nothing is certain to deny
}

// passwordField names the sealed password of a data source.
const passwordField = "password"

// snap returns the tenant's current snapshot. One that was read while a change was
// committed is used once and not kept.
func (s *Service) snap(ctx context.Context, t core.TenantID) (*snapshot, error) {
	s.snapMu.Lock()
	kept, epoch := s.snapshots[t], s.snapEpoch
	s.snapMu.Unlock()
	if kept != nil {
		return kept, nil
	}
	var out *snapshot
	err := s.opts.Store.Read(ctx, func(tx store.Tx) (err error) {
		out, err = readSnapshot(tx, t)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.snapMu.Lock()
	defer s.snapMu.Unlock()
	if s.snapEpoch == epoch {
		s.snapshots[t] = out
	}
	return out, nil
}

// resourcesChanged is called after every commit that changed resources.
func (s *Service) resourcesChanged(t core.TenantID) {
	s.snapMu.Lock()
	s.snapEpoch++
	delete(s.snapshots, t)
	s.snapMu.Unlock()
	s.breakers.reset(t)
	s.opts.Fleet.Push()
}

func readSnapshot(tx store.Tx, t core.TenantID) (*snapshot, error) {
	all, err := tx.ListResources(t, "")
	if err != nil {
		return nil, err
	}
	out := &snapshot{all: all, byName: map[core.Kind]map[string]core.Stored{}, secrets: map[string][]byte{}}
	for _, r := range all {
		k := r.Spec.Kind()
		if out.byName[k] == nil {
			out.byName[k] = map[string]core.Stored{}
		}
		out.byName[k][r.Spec.ResourceName()] = r
		if k != core.KindDataSource {
			continue
		}
		sealed, err := tx.GetSecret(t, r.UID, passwordField)
		if err == nil {
			out.secrets[r.UID] = sealed
		} else if errs.ClassOf(err) != errs.NotFound {
			return nil, err
		}
	}
	return out, nil
}

// find returns a resource of the snapshot.
func (sn *snapshot) find(k core.Kind, name string) (core.Stored, error) {
	if r, ok := sn.byName[k][name]; ok {
		return r, nil
	}
	return core.Stored{}, errs.New(errs.NotFound, "%s/%s does not exist", k, name).On(string(k)+"/"+name, "")
}
