package e2e

import (
	"context"
	"crypto/md5"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// chaosClients is how many ask at once.
const chaosClients = 32

// TestChaosAnswersAreRightOrErrors has 32 clients query a gateway of two members while members,
// host and service are killed, the tunnels drop every packet for a while, the data source
// restarts and the data directory's disk is full. Each answer is the right one or a clear error;
// afterwards the invariants hold.
func TestChaosAnswersAreRightOrErrors(t *testing.T) {
	busy.take(t)
	l := newChaos(t)
	watch := watchAddresses(t, l.corp)
	tally := &tally{failed: map[string]int{}}
	enough := func() bool {
		right, failed := tally.counts()
		return watch.samples.Load() >= 50 && right >= chaosClients && failed > 0
	}
	ctx, cancel := chaosContext(time.Minute, enough)
	defer cancel()
	var wg sync.WaitGroup
	for i := range chaosClients {
		wg.Go(func() { l.askAndCheck(ctx, rand.New(rand.NewPCG(uint64(i), 7)), tally) })
	}
	m := newMonkey(l.lab, seeded(t))
	for ctx.Err() == nil {
		m.pause(1500)
		l.strike(m)
	}
	wg.Wait()
	l.Ready()
	worksAgain(t, l.api, 90*time.Second)
	t.Logf("strikes %v; %d right answers, errors by class and step: %v", m.strikes, tally.right, tally.failed)
	checkSettled(t, l.lab)
	if watch.end(); !enough() {
		t.Errorf("%d samples, %d right answers, errors %v: too little for this test to mean anything", watch.samples.Load(), tally.right, tally.failed)
	}
	l.checkPauseLeavesNothing(t)
	l.checkDeleteLeavesNothing(t)
}

// chaos is a lab with a data directory of its own size and a database server of its own.
type chaos struct{ *lab }

func newChaos(t *testing.T) *chaos {
	t.Helper()
	l := prepareLab(t, startPG(t))
	if err := os.Mkdir(l.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("sluice-e2e", l.Data, "tmpfs", 0, "size=32m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Stop("service", syscall.SIGTERM)
		if err := syscall.Unmount(l.Data, 0); err != nil {
			t.Errorf("unmount: %v", err)
			_ = syscall.Unmount(l.Data, syscall.MNT_DETACH)
		}
	})
	l.serviceFlags = []string{"--quarantine", "200ms"}
	l.startService()
	l.startHost()
	l.Ready()
	l.rewrite("gateway.yaml", "members: {min: 0, max: 2}", "members: {min: 2, max: 2}")
	l.applyExample()
	return &chaos{l}
}

// strike does one thing that may happen to an installation.
func (l *chaos) strike(m *monkey) {
	kinds := []string{"kill", "kill", "kill", "cut tunnels", "restart source", "fill disk"}
	switch kind := kinds[m.rng.IntN(len(kinds))]; kind {
	case "kill":
		m.strike()
	case "cut tunnels":
		m.strikes[kind]++
		l.cutTunnels(m)
	case "restart source":
		m.strikes[kind]++
		l.PG.Restart(l.t)
	case "fill disk":
		m.strikes[kind]++
		filler := filepath.Join(l.Data, "filler")
		fill(l.t.(*testing.T), filler)
		m.pause(2000)
		if err := os.Remove(filler); err != nil {
			l.t.Errorf("make room: %v", err)
		}
	}
}

// cutTunnels drops what members and relay send each other, for up to two seconds.
func (l *chaos) cutTunnels(m *monkey) {
	cut := "add table ip chaos; add chain ip chaos in { type filter hook prerouting priority -400; policy drop; }"
	if out, err := commandIn(l.tunnelSpace(), "nft", cut); err != nil {
		l.t.Errorf("cut the tunnels: %v: %s", err, out)
		return
	}
	m.pause(2000)
	if out, err := commandIn(l.tunnelSpace(), "nft", "delete table ip chaos"); err != nil {
		l.t.Errorf("mend the tunnels: %v: %s", err, out)
	}
}

// queryBound is how long a query may take, whatever dies meanwhile, among as many others as a busy
// machine is slow with: all time-outs on its way together are a part of that.
const queryBound = 4 * time.Minute

// tally is what became of the clients' queries.
type tally struct {
	mu     sync.Mutex
	right  int
	failed map[string]int
}

// counts tells how many answers were right, and how many sorts of errors there were.
func (t *tally) counts() (right, failed int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.right, len(t.failed)
}

// askAndCheck runs queries whose results it knows until ctx ends.
func (l *chaos) askAndCheck(ctx context.Context, rng *rand.Rand, sum *tally) {
	for ctx.Err() == nil {
		rows := []int{1, 1, 1, 1000, 100_000}[rng.IntN(5)]
		salt := rng.IntN(1_000_000)
		begun := time.Now()
		bound, stop := context.WithTimeout(context.Background(), queryBound)
		got, err := l.series(bound, rows, salt)
		stop()
		took := time.Since(begun)
		if took >= queryBound {
			l.t.Errorf("%d rows took %v: %v", rows, took, err)
		}
		sum.mu.Lock()
		if err == nil {
			sum.right++
		} else {
			e := errs.As(err)
			sum.failed[string(e.Class)+" "+e.Step]++
			if e.Class == errs.Internal || strings.TrimSpace(e.Message) == "" {
				l.t.Errorf("not a clear error: %+v", e)
			}
		}
		sum.mu.Unlock()
		if err == nil && got != nil {
			l.t.Errorf("a wrong answer: %v", got)
		}
		if err != nil {
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// series asks for rows of numbers and reports what is wrong with a result that came whole.
func (l *chaos) series(ctx context.Context, rows, salt int) (wrong, err error) {
	sql := fmt.Sprintf("select g, g * 31 + %d as h, md5((g + %d)::text) as m from generate_series(1, %d) g -- of %s", salt, salt, rows, l.Instance())
	res, err := l.api.Query(ctx, client.Query{Source: source, SQL: sql}, client.MediaCSV)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	in := csv.NewReader(res.Body)
	in.ReuseRecord = true
	n := -1 // the header
	var first, bad []string
	for {
		record, err := in.Read()
		if err != nil {
			if errors.Is(err, io.EOF) && n >= 0 {
				break
			}
			return nil, err
		}
		if n++; n == 0 {
			first = slices.Clone(record)
			continue
		}
		if bad == nil && !slices.Equal(record, rowOf(n, salt)) {
			bad = slices.Clone(record)
		}
	}
	if n != rows || bad != nil || !slices.Equal(first, []string{"g", "h", "m"}) {
		return fmt.Errorf("%d rows of %d under %v; the first wrong one is %v", n, rows, first, bad), nil
	}
	return nil, nil
}

// rowOf is the row that series has asked for.
func rowOf(n, salt int) []string {
	sum := md5.Sum(strconv.AppendInt(nil, int64(n+salt), 10))
	return []string{strconv.Itoa(n), strconv.Itoa(n*31 + salt), hex.EncodeToString(sum[:])}
}
