package gateway

import (
	"container/list"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/apache/arrow-adbc/go/adbc"

	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// sourceKey identifies a source with its credentials: a MAC under a key that only this
// process has, so that no secret stands in a map.
type sourceKey [sha256.Size]byte

// databases keeps the databases that were used lately, one for each source identity.
type databases struct {
	opts   ServerOptions
	secret [32]byte

	mu     sync.Mutex
	open   map[sourceKey]*database
	idle   *list.List // of *database, the longest idle one first
	closed bool
	timer  *time.Timer
}

// database is an open adbc.Database and who uses it.
type database struct {
	adbc.Database
	key   sourceKey
	users int
	since time.Time     // idle since
	place *list.Element // in idle, nil while used
}

func newDatabases(opts ServerOptions) *databases {
	d := &databases{opts: opts, open: map[sourceKey]*database{}, idle: list.New()}
	_, _ = rand.Read(d.secret[:]) // never fails
	d.timer = time.AfterFunc(time.Hour, d.closeIdle)
	d.timer.Stop()
	return d
}

// key returns the identity of a source. JSON sorts maps, so equal sources are equal.
func (d *databases) key(src memberapi.Source) (sourceKey, error) {
	doc, err := json.Marshal(src)
	if err != nil {
		return sourceKey{}, err
	}
	mac := hmac.New(sha256.New, d.secret[:])
	mac.Write(doc)
	return sourceKey(mac.Sum(nil)), nil
}

// acquire returns the database of a source, opened if need be. Opening does not
// connect, so it happens under the lock. Every acquired database is released once.
func (d *databases) acquire(src memberapi.Source) (*database, error) {
	key, err := d.key(src)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errs.New(errs.Unavailable, "the gateway is shutting down")
	}
	db, ok := d.open[key]
	if !ok {
		if db, err = d.openSource(src, key); err != nil {
			return nil, err
		}
		d.open[key] = db
	}
	if db.place != nil {
		d.idle.Remove(db.place)
		db.place = nil
	}
	db.users++
	return db, nil
}

func (d *databases) openSource(src memberapi.Source, key sourceKey) (*database, error) {
	c, ok := d.opts.Lookup(src.Type)
	if !ok {
		return nil, errs.New(errs.Invalid, "this gateway has no connector for the type %q of data source %s", src.Type, src.Name).
			On("DataSource/"+src.Name, "type").WithStep(errs.StepAdmit)
	}
	resolve := d.opts.Resolve
	if len(src.DNSServers) > 0 {
		resolve = NewSourceResolver(src.DNSServers).Resolve
	}
	db, err := c.Open(src, connector.Options{Resolve: resolve, MaxConns: d.opts.MaxConns})
	if err != nil {
		return nil, atStep(errs.StepAdmit, err)
	}
	return &database{Database: db, key: key}, nil
}

// release gives a database back, and closes those that have been idle the longest if
// there are too many.
func (d *databases) release(db *database) {
	d.mu.Lock()
	if db.users--; db.users == 0 {
		db.since = time.Now()
		db.place = d.idle.PushBack(db)
		if d.idle.Len() == 1 {
			d.timer.Reset(d.opts.IdleClose)
		}
	}
	var over []*database
	for d.idle.Len() > d.opts.MaxDatabases || d.closed && d.idle.Len() > 0 {
		over = append(over, d.takeIdle())
	}
	d.mu.Unlock()
	_ = closeAll(over)
}

// takeIdle takes out the database that has been idle the longest. mu is held.
func (d *databases) takeIdle() *database {
	db := d.idle.Remove(d.idle.Front()).(*database)
	db.place = nil
	delete(d.open, db.key)
	return db
}

// closeIdle closes what has been idle for long enough.
func (d *databases) closeIdle() {
	d.mu.Lock()
	var old []*database
	for d.idle.Len() > 0 {
		if left := d.opts.IdleClose - time.Since(d.idle.Front().Value.(*database).since); left > 0 {
			d.timer.Reset(left)
			break
		}
		old = append(old, d.takeIdle())
	}
	d.mu.Unlock()
	_ = closeAll(old)
}

// close closes everything idle now, and the rest as it is released.
func (d *databases) close() error {
	d.mu.Lock()
	d.closed = true
	d.timer.Stop()
	var all []*database
	for d.idle.Len() > 0 {
		all = append(all, d.takeIdle())
	}
	d.mu.Unlock()
	return closeAll(all)
}

func closeAll(dbs []*database) error {
	var all error
	for _, db := range dbs {
		all = errors.Join(all, db.Close())
	}
	return all
}
