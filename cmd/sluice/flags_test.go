package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// What is wrong with a flag is said before anything is begun.
func TestHostFlags(t *testing.T) {
	program := filepath.Join(t.TempDir(), "sluice-gateway")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		flags hostFlags
		want  string
	}{
		{"as they should be", hostFlags{name: "vm-1", program: program, pool: 0}, ""},
		{"no name", hostFlags{program: program}, `--name: "" is not a name`},
		{"a name with a blank", hostFlags{name: "vm 1", program: program}, `--name: "vm 1" is not a name`},
		{"less than none in advance", hostFlags{name: "vm-1", program: program, pool: -1}, "--pool -1 is not a number of members"},
		{"no program", hostFlags{name: "vm-1", program: program + "x"}, "the members' program can't be found"},
		{"a folder as the program", hostFlags{name: "vm-1", program: filepath.Dir(program)}, "is not a file"},
	} {
		t.Run(tc.name, func(t *testing.T) { wantInvalid(t, tc.flags.check(), tc.want) })
	}
}

func TestServiceFlags(t *testing.T) {
	good := func() serviceFlags {
		return serviceFlags{rest: time.Second, lease: time.Second, shrink: time.Second, audit: time.Hour, queries: queryLogFlags{keep: time.Hour}}
	}
	for flag, edit := range map[string]func(*serviceFlags){
		"":               func(*serviceFlags) {},
		"--quarantine":   func(f *serviceFlags) { f.rest = 0 }, // 0 would stand for the default further in
		"--lease-time":   func(f *serviceFlags) { f.lease = -time.Second },
		"--shrink-after": func(f *serviceFlags) { f.shrink = 0 },
		"--keep-audit":   func(f *serviceFlags) { f.audit = -time.Hour },
		"--keep-queries": func(f *serviceFlags) { f.queries.keep = 0 },
	} {
		f := good()
		edit(&f)
		wantInvalid(t, f.check(), flag)
	}
}

func wantInvalid(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Error(err)
	case want != "" && (errs.ClassOf(err) != errs.Invalid || !strings.Contains(err.Error(), want)):
		t.Errorf("%v, want %q", err, want)
	}
}

// A relative run directory is that of the folder in which the command was typed, whichever
// command it was: names in the kernel and the runtime's paths follow from it.
func TestRunDirIsAbsolute(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	var f hostFlags
	cmd := &cobra.Command{Use: "x", RunE: func(*cobra.Command, []string) error { return nil }}
	f.addMachine(cmd)
	cmd.SetArgs([]string{"--run-dir", "run/"})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, "run"); f.runDir != want {
		t.Errorf("the run directory is %s, want %s", f.runDir, want)
	}
}
