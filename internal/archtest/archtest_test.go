// Package archtest holds the rules of the repository's structure: what may import
// what, and that every package says what it is. It contains tests only.
package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sluice-gateway/sluice/"

// rules say what a package, or everything below it, must not depend on, even
// indirectly, each with the reason.
var rules = []struct {
	from string
	not  []string
	why  string
}{
	{"internal/core", []string{module, "."}, "core is standard library only: every package stands on it"},
	{"internal/errs", []string{module, "."}, "error classes are standard library only"},
	{"internal/policy", []string{"internal/host", "internal/store", "internal/service", "os/exec", "github.com/vishvananda"}, "rules are pure data in, text and verdicts out"},
	{"internal/placement", []string{"internal/host", "internal/store", "internal/service", "net/http"}, "placement is pure"},
	{"internal/breaker", []string{module, "."}, "a breaker is pure"},
	{"internal/admission", []string{module, "."}, "admission is pure: data in, decisions out"},
	{"internal/validate", []string{"internal/store", "internal/service", "net/http"}, "validation is pure"},
	{"cmd/sluice-gateway", []string{
		"internal/store", "internal/service", "internal/host", "internal/hostnet", "internal/sandbox", "internal/fleet",
		"internal/policy", "internal/placement", "internal/seal", "internal/cli", "client",
		"modernc.org/sqlite", "google.golang.org/grpc", "go.opentelemetry.io/otel/sdk", "github.com/vishvananda", "github.com/spf13",
	}, "the member's binary is small and holds no code of the service or the host"},
	{"internal/host", []string{"internal/connector", "internal/gateway", "internal/store", "internal/service", "internal/fleet", "github.com/jackc"}, "a host reads no data and talks to no data source"},
	{"internal/hostnet", []string{"internal/store", "internal/service", "internal/sandbox", "internal/fleet"}, "networks know nothing of who asks for them"},
	{"internal/dhcp", []string{module}, "leases know nothing of members, networks and who asks for them"},
	{"internal/arp", []string{module}, "frames know nothing of members and networks"},
	{"internal/sandbox", []string{"internal/store", "internal/service", "internal/hostnet", "internal/fleet"}, "sandboxes know nothing of who asks for them"},
	{"internal/service", []string{"internal/hostnet", "internal/sandbox", "internal/gateway", "internal/connector", "github.com/vishvananda", "github.com/jackc"}, "the service reaches hosts and members over the wire only"},
	{"internal/fleet", []string{"internal/service", "internal/hostnet", "internal/sandbox", "internal/gateway", "internal/seal"}, "the fleet knows nothing of queries and credentials"},
	{"internal/connector", []string{"internal/store", "internal/service", "internal/host", "internal/tunnel"}, "connectors run in members only"},
	{"client", []string{"internal/store", "internal/service", "internal/host", "modernc.org/sqlite"}, "the public client is light"},
}

type pkg struct {
	ImportPath string
	Doc        string
	Name       string
	Deps       []string
	Standard   bool
	GoFiles    []string
}

// packages lists the module's packages with all that they depend on.
func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,Name,Deps,Standard,GoFiles", module+"...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestImports(t *testing.T) {
	all := packages(t)
	for _, r := range rules {
		matched := false
		for _, p := range all {
			if !within(p.ImportPath, module+r.from) || len(p.GoFiles) == 0 || strings.HasSuffix(p.ImportPath, "test") {
				continue
			}
			matched = true
			for _, dep := range p.Deps {
				if i := slices.IndexFunc(r.not, func(n string) bool { return forbidden(dep, n, module+r.from) }); i >= 0 {
					t.Errorf("%s depends on %s: %s", p.ImportPath, dep, r.why)
				}
			}
		}
		if !matched {
			t.Errorf("the rule for %s matches no package", r.from)
		}
	}
}

// forbidden reports whether dep falls under a rule's word: "." is anything outside
// the standard library, the module's own path anything of it but the package itself,
// else a path of this module or a whole import path, with everything below it.
func forbidden(dep, word, self string) bool {
	switch {
	case within(dep, self):
		return false
	case word == ".":
		return strings.Contains(strings.SplitN(dep, "/", 2)[0], ".")
	case word == module:
		return strings.HasPrefix(dep, module)
	}
	return within(dep, module+word) || within(dep, word)
}

func within(path, parent string) bool {
	return path == parent || strings.HasPrefix(path, parent+"/")
}

func TestPackagesSayWhatTheyAre(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) == 0 {
			continue // tests only
		}
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command "
		}
		if !strings.HasPrefix(p.Doc, want) {
			t.Errorf("%s: its doc comment must begin with %q", p.ImportPath, want)
		}
	}
}
