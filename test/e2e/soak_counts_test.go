package e2e

import (
	"database/sql"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sluice-gateway/sluice/client"
)

// counts is how much there is of each thing, by a name that says of what and whose.
type counts map[string]int

// table shows counts that were made one after the other, a line for each thing.
func table(made ...counts) string {
	var out strings.Builder
	for _, what := range slices.Sorted(maps.Keys(made[len(made)-1])) {
		fmt.Fprintf(&out, "\n\t%s:", what)
		for _, c := range made {
			fmt.Fprintf(&out, " %d", c[what])
		}
	}
	return out.String()
}

// allowance is how much more of a thing there may be after 4,000 queries and 200 wakes. All of
// it is far less than one for every wake; of most things there may be none more.
func allowance(what string) int {
	kind, _, _ := strings.Cut(what, ": ")
	switch kind {
	case "descriptors":
		return 4 // idle connections
	case "goroutines":
		return 8 // of idle connections
	case "goroutines at most":
		return 30 // how many happened to run at once is chance
	case "memory, KiB":
		return 6 << 10 // 1.5 KiB for each query, 30 KiB for each wake: the collector's own swing
	case "history":
		return 1 << 30 // kept for a time; counted against what was done
	}
	return 0
}

// grownBetween says what became more than its allowance.
func grownBetween(before, after counts) (out []string) {
	for _, what := range slices.Sorted(maps.Keys(after)) {
		if n, more := after[what], allowance(what); n > before[what]+more {
			out = append(out, fmt.Sprintf("%s: from %d to %d, with %d allowed", what, before[what], n, more))
		}
	}
	return out
}

// count counts everything that the installation has.
func (s *soak) count(t *testing.T) counts {
	t.Helper()
	out := counts{"goroutines: service": s.goroutines(t)}
	pids := map[string]int{"service": s.pid("service"), "host": s.pid("host")}
	for _, pid := range s.Splicers() {
		pids["splicer"] = pid
		out["processes: splicers"]++
	}
	for _, pid := range s.containers() {
		pids["member"] = pid
	}
	for name, pid := range pids {
		program := "sluice"
		if name == "member" {
			program = "sluice-gateway"
		}
		countProcess(t, out, name, pid, filepath.Join(s.Bin, program))
	}
	s.countKernel(t, out)
	out["files: run directory"] = countFiles(t, s.Run)
	out["files: data directory"] = countFiles(t, s.Data)
	s.countRows(t, out)
	return out
}

// countProcess counts what a process holds.
func countProcess(t *testing.T, out counts, name string, pid int, program string) {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	out["descriptors: "+name] = len(fds)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			out["memory, KiB: "+name], _ = strconv.Atoi(strings.Fields(rest)[0])
		}
	}
	n, err := mostGoroutines(pid, program)
	if err != nil {
		t.Fatalf("goroutines of %s: %v", name, err)
	}
	out["goroutines at most: "+name] = n
}

// mostGoroutines reads from a process's memory how many goroutines it has ever had at once:
// the runtime keeps those that have ended for the next ones. So it needs no help of a program
// that shows it to nobody.
func mostGoroutines(pid int, program string) (int, error) {
	f, err := elf.Open(program)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		return 0, err
	}
	i := slices.IndexFunc(symbols, func(s elf.Symbol) bool { return s.Name == "runtime.allglen" })
	if i < 0 || f.Type != elf.ET_EXEC {
		return 0, fmt.Errorf("%s: no symbol runtime.allglen at a fixed address", program)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return 0, err
	}
	defer mem.Close()
	var word [8]byte
	if _, err := mem.ReadAt(word[:], int64(symbols[i].Value)); err != nil {
		return 0, err
	}
	return int(binary.LittleEndian.Uint64(word[:])), nil
}

// countKernel counts namespaces and what is in them, and what else the kernel has by the
// installation's name.
func (s *soak) countKernel(t *testing.T, out counts) {
	t.Helper()
	for _, kind := range []string{"m", "v", "n", "t", "b"} {
		for _, space := range s.spaces(kind) {
			out["namespaces: "+kind]++
			for what, args := range map[string][]string{
				"links":     {"ip", "-o", "link"},
				"addresses": {"ip", "-o", "addr"},
				"routes":    {"ip", "route", "show", "table", "all"},
				"rules":     {"nft", "-t", "list", "ruleset"},
			} {
				text, err := commandIn(space, args[0], args[1:]...)
				if err != nil {
					t.Errorf("%v in %s: %v", args, space, err)
				}
				out[what+": "+kind] += strings.Count(text, "\n")
			}
		}
	}
	tables, _ := exec.Command("nft", "list", "tables").Output()
	out["tables: host"] = strings.Count(string(tables), s.Instance())
	links, _ := exec.Command("ip", "-o", "link").Output()
	out["links: host"] = strings.Count(string(links), "s"+s.Instance()+"-")
	mounts, _ := os.ReadFile("/proc/mounts")
	out["mounts: host"] = strings.Count(string(mounts), s.Instance()) + strings.Count(string(mounts), filepath.Base(s.Run))
	for _, pattern := range []string{"/sys/fs/cgroup/sluice-", "/sys/fs/cgroup/*/sluice-"} {
		roots, _ := filepath.Glob(pattern + s.Instance())
		for _, root := range roots {
			groups, _ := filepath.Glob(root + "/*/cgroup.procs")
			out["cgroups: host"] += len(groups)
		}
	}
}

func countFiles(t *testing.T, dir string) (n int) {
	t.Helper()
	_ = filepath.WalkDir(dir, func(_ string, _ fs.DirEntry, err error) error {
		if err == nil { // what goes away meanwhile is not there
			n++
		}
		return nil
	})
	return n
}

// kept are the tables that grow with what was done, until it is old enough.
var kept = []string{"queries", "transitions", "audit"}

// countRows counts the store's rows: members and leases that have ended for themselves, as
// they are kept for a while, too.
func (s *soak) countRows(t *testing.T, out counts) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+s.Data+"/sluice.db?mode=ro&_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	names, err := column(db, "select name from sqlite_schema where type = 'table' and name not like 'sqlite_%'")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		where := ""
		switch name {
		case "members":
			where = " where state <> 'gone'"
		case "leases":
			where = " where state = 'held'"
		}
		rows, err := column(db, "select count(*) from "+name+where)
		if err != nil {
			t.Fatal(err)
		}
		kind := "rows: "
		if slices.Contains(kept, name) {
			kind = "history: "
		}
		out[kind+name], _ = strconv.Atoi(rows[0])
	}
}

// column reads the one column of a statement.
func column(db *sql.DB, statement string) (out []string, err error) {
	rows, err := db.Query(statement)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// drain reads a result to its end.
func drain(res *client.Result) error {
	defer res.Body.Close()
	_, err := io.Copy(io.Discard, res.Body)
	return err
}
