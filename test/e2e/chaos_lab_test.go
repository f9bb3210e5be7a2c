package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/nettest"
	"github.com/sluice-gateway/sluice/internal/testpg"
	"github.com/sluice-gateway/sluice/test/e2e/stack"
)

// lab is an installation whose service and host are processes of their own, so that
// each can die alone.
type lab struct {
	*corp
	serviceFlags []string
	hostFlags    []string
	api          *client.Client
	written      map[string]*stack.Log // by program, over all its restarts
	pids         map[string]int
}

// newLab starts service and host apart and applies the example.
func newLab(t *testing.T, pg *testpg.Server, serviceFlags ...string) *lab {
	t.Helper()
	l := prepareLab(t, pg)
	l.serviceFlags = serviceFlags
	l.startService()
	l.startHost()
	l.Ready()
	l.applyExample()
	return l
}

// prepareLab is newLab before anything runs.
func prepareLab(t *testing.T, pg *testpg.Server) *lab {
	t.Helper()
	return labOn(prepareCorp(t, t, pg))
}

// labOn makes a lab of a prepared installation.
func labOn(c *corp) *lab {
	return &lab{corp: c, written: map[string]*stack.Log{}, pids: map[string]int{}, api: c.Client()}
}

func (l *lab) startService() {
	l.t.Helper()
	l.started("service", l.Service(l.serviceFlags...))
	eventually(l.t, 60*time.Second, "the service made its CA and the hosts' token", func() bool {
		_, noCA := os.Stat(l.Data + "/ca.pem")
		_, noToken := os.Stat(l.Data + "/host.token")
		return noCA == nil && noToken == nil
	})
}

func (l *lab) startHost() {
	l.t.Helper()
	l.started("host", l.Host(l.hostFlags...))
}

func (l *lab) started(name string, p *stack.Proc) {
	l.written[name], l.pids[name] = p.Log, p.Cmd.Process.Pid
}

// pid returns the process of the service or the host.
func (l *lab) pid(name string) int { return l.pids[name] }

// kill ends a program as a crash does.
func (l *lab) kill(name string) { l.Stop(name, syscall.SIGKILL) }

// start starts a program by the name that kill takes.
func (l *lab) start(name string) {
	l.t.Helper()
	if name == "host" {
		l.startHost()
		return
	}
	l.startService()
}

// objects reads what the API lists of a kind.
func objects[T any](t testing.TB, api *client.Client, kind string) []T {
	t.Helper()
	out, err := listObjects[T](api, kind)
	if err != nil {
		t.Fatalf("list %s: %v", kind, err)
	}
	return out
}

// listObjects is objects for a service that may be away.
func listObjects[T any](api *client.Client, kind string) ([]T, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	items, err := api.List(ctx, kind)
	if err != nil {
		return nil, err
	}
	out := make([]T, len(items))
	for i, item := range items {
		if err := json.Unmarshal(item, &out[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// onlyMember returns the one member there is, which must be ready.
func onlyMember(t testing.TB, api *client.Client) core.Member {
	t.Helper()
	all := objects[core.Member](t, api, "members")
	if len(all) != 1 || all[0].State != core.MemberReady {
		t.Fatalf("members %+v, want one that is ready", all)
	}
	return all[0]
}

// memberOf returns the ready member of a gateway, waking it if need be.
func (c *corp) memberOf(t testing.TB, api *client.Client, gateway string) core.Member {
	t.Helper()
	c.Must("gateway", "wake", gateway)
	for _, m := range objects[core.Member](t, api, "members") {
		if m.Gateway == gateway && m.State == core.MemberReady {
			return m
		}
	}
	t.Fatalf("gateway %s is awake and has no ready member", gateway)
	return core.Member{}
}

// containers returns the first process of every member's container, found in the kernel
// without the installation's help, by member and generation.
func (c *corp) containers() map[string]int {
	out, members := map[string]int{}, c.adopted()
	dirs, _ := filepath.Glob("/sys/fs/cgroup/pids/sluice-" + c.Instance() + "/*/cgroup.procs")
	if len(dirs) == 0 {
		dirs, _ = filepath.Glob("/sys/fs/cgroup/sluice-" + c.Instance() + "/*/cgroup.procs")
	}
	for _, procs := range dirs {
		text, err := os.ReadFile(procs)
		if err != nil {
			continue
		}
		for word := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil && pid > 1 && alive(pid) {
				if id := memberIn(filepath.Base(filepath.Dir(procs)), members); id != "" {
					out[id] = pid
				}
				break
			}
		}
	}
	return out
}

// adopted maps the containers that were started before they were a member's to the
// members that they became.
func (c *corp) adopted() map[string]string {
	out := map[string]string{}
	records, _ := filepath.Glob(c.Run + "/members/bundles/m-*/record.json")
	for _, path := range records {
		var rec struct{ Container string }
		if raw, err := os.ReadFile(path); err == nil && json.Unmarshal(raw, &rec) == nil {
			out[rec.Container] = filepath.Base(filepath.Dir(path))
		}
	}
	return out
}

// memberIn names the member in a container; "" stands for one that waits to become one.
func memberIn(container string, adopted map[string]string) string {
	if strings.HasPrefix(container, "blank-") {
		return adopted[container]
	}
	return container
}

// alive reports whether a process runs; a zombie does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, ok := strings.Cut(string(stat), ") ")
	return ok && !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// pidOf returns the process of a member's container.
func (c *corp) pidOf(t testing.TB, m core.Member) int {
	t.Helper()
	pid, ok := c.containers()[fmt.Sprintf("%s-%d", m.ID, m.Generation)]
	if !ok {
		t.Fatalf("member %s generation %d has no process; containers %v", m.ID, m.Generation, c.containers())
	}
	return pid
}

// spaces lists the named network namespaces of the installation of one kind: "m" of
// members, "b" of those that wait to become one, "v" of networks, "n" of NAT gateways,
// "t" the tunnels'.
func (c *corp) spaces(kind string) []string {
	entries, _ := os.ReadDir("/run/netns")
	var out []string
	for _, e := range entries {
		if rest, ok := strings.CutPrefix(e.Name(), "sluice-"+c.Instance()+"-"); ok && (rest == kind || strings.HasPrefix(rest, kind+"-")) {
			out = append(out, "/run/netns/"+e.Name())
		}
	}
	return out
}

// hashName is how names in the kernel derive from identifiers; it is written again here,
// so that a change is noticed.
func hashName(n int, parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])[:n]
}

// memberSpace, vnetSpace and tunnelSpace are the namespaces that matter to a member.
func (c *corp) memberSpace(m core.Member) string {
	return "/run/netns/sluice-" + c.Instance() + "-m-" + hashName(12, m.ID, fmt.Sprint(m.Generation))
}

func (c *corp) vnetSpace(m core.Member) string {
	return "/run/netns/sluice-" + c.Instance() + "-v-" + hashName(8, m.VNetUID)
}

func (c *corp) tunnelSpace() string { return "/run/netns/sluice-" + c.Instance() + "-t" }

// readIn reads a file of /proc as a process in the namespace sees it.
func readIn(t testing.TB, space, path string) string {
	t.Helper()
	var text []byte
	err := nettest.In(space, func() (err error) {
		text, err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatalf("%s in %s: %v", path, space, err)
	}
	return string(text)
}

// tryQuery runs a short query and returns its error.
func tryQuery(ctx context.Context, api *client.Client, sql string) error {
	res, err := api.Query(ctx, client.Query{Source: source, SQL: sql}, client.MediaCSV)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

// worksAgain waits until a query works, for at most the given time. The bound leaves
// room for a member that has lost its token and is given up after 30 s.
func worksAgain(t testing.TB, api *client.Client, within time.Duration) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		err = tryQuery(ctx, api, "select 1")
		cancel()
		if err == nil {
			return
		}
	}
	t.Fatalf("no query works within %v; the last error: %v", within, err)
}

// seeded returns a generator with the seed of the environment, so that a failure can be
// repeated, or else a fixed one, and says which.
func seeded(t testing.TB) *rand.Rand {
	seed := uint64(1)
	if text := os.Getenv("SLUICE_CHAOS_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("SLUICE_CHAOS_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("SLUICE_CHAOS_SEED=%d repeats this run", seed)
	return rand.New(rand.NewPCG(seed, 0x51c1ce))
}

// chaosTime is how long tests that kill at random go on. Short runs are for work on the
// tests themselves and for slow machines: a tenth of the time finds most of what a minute
// finds, but not the windows of a few microseconds.
func chaosTime(whole time.Duration) time.Duration {
	if testing.Short() {
		return whole / 6
	}
	return whole
}

// chaosContext ends after a time, and later if not enough has happened by then for the test to
// mean anything: on a busy machine, that takes longer. After six times the time it ends anyway.
func chaosContext(whole time.Duration, enough func() bool) (context.Context, context.CancelFunc) {
	whole = chaosTime(whole)
	ctx, cancel := context.WithTimeout(context.Background(), 6*whole)
	timer := time.AfterFunc(whole, func() {
		for !enough() && ctx.Err() == nil {
			time.Sleep(100 * time.Millisecond)
		}
		cancel()
	})
	return ctx, func() { timer.Stop(); cancel() }
}

// monkey kills service, host and members at random, and starts what it killed.
type monkey struct {
	l       *lab
	rng     *rand.Rand
	strikes map[string]int
}

func newMonkey(l *lab, rng *rand.Rand) *monkey {
	return &monkey{l: l, rng: rng, strikes: map[string]int{}}
}

// strike kills one thing, and sometimes two.
func (m *monkey) strike() {
	victims := []string{"service", "host", "member", "splicer"}
	m.rng.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
	n := 1 + m.rng.IntN(5)/4
	for _, v := range victims[:n] {
		m.strikes[v]++
		switch v {
		case "member":
			killAll(slices.Collect(maps.Values(m.l.containers())))
		case "splicer":
			killAll(m.l.Splicers())
		default:
			m.l.kill(v)
		}
	}
	m.pause(150)
	for _, v := range victims[:n] {
		if v == "service" || v == "host" {
			m.l.start(v)
		}
	}
}

func killAll(pids []int) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// pause waits for up to so many milliseconds.
func (m *monkey) pause(ms int) { time.Sleep(time.Duration(m.rng.IntN(ms*1000)) * time.Microsecond) }

// statInode is the number that tells namespaces apart.
func statInode(fi os.FileInfo) uint64 { return fi.Sys().(*syscall.Stat_t).Ino }

// commandIn runs a command in a namespace and returns what it wrote.
func commandIn(space, name string, args ...string) (string, error) {
	all := append([]string{"--net=" + space, name}, args...)
	out, err := exec.Command("nsenter", all...).CombinedOutput()
	return string(out), err
}
