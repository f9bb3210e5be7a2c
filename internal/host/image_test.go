package host

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/sandbox"
	boxfake "github.com/sluice-gateway/sluice/internal/sandbox/fake"
)

// images are what the sandboxes of a rig's machine run, blanks under "blank".
func (r *rig) images() map[string]string {
	r.t.Helper()
	rt := boxfake.New(r.boxes)
	defer rt.Close()
	states, err := rt.List(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	out := map[string]string{}
	for _, s := range states {
		id := s.ID
		if s.Blank {
			id = "blank"
		}
		out[id] = s.Image
	}
	return out
}

// reported are the programs of the last report: of new members under "", and of each member.
func (r *rig) reported() map[string]string {
	report := r.lastReport()
	out := map[string]string{"": report.Image}
	for _, m := range report.Members {
		out[m.ID] = m.Image
	}
	return out
}

func TestAnotherProgram(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.pool = 1
	stop := r.start()
	r.want(1)
	r.eventually("the member runs, another waits", func() bool {
		return cmp.Equal(r.reported(), map[string]string{"": "program-1", "m-1": "program-1"}) &&
			cmp.Equal(r.images(), map[string]string{"m-1-1": "program-1", "blank": "program-1"})
	})
	r.boxes.SetImage("program-2")
	r.eventually("the service knows, the old blank is gone, the member stays", func() bool {
		return cmp.Equal(r.reported(), map[string]string{"": "program-2", "m-1": "program-1"}) &&
			cmp.Equal(r.images(), map[string]string{"m-1-1": "program-1", "blank": "program-2"})
	})
	r.want(1, 2)
	r.eventually("the next member runs the new one", func() bool {
		return cmp.Equal(r.reported(), map[string]string{"": "program-2", "m-1": "program-1", "m-2": "program-2"})
	})

	stop() // and the program changes while no host is there
	r.boxes.SetImage("program-3")
	r.start()
	r.eventually("the next host tells them apart", func() bool {
		return cmp.Equal(r.reported(), map[string]string{"": "program-3", "m-1": "program-1", "m-2": "program-2"})
	})
}

// TestNoMemberOfAnOldBlank: the program changes between two looks, and a member is wanted.
func TestNoMemberOfAnOldBlank(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.pool, r.look = 1, time.Hour
	r.start()
	before := r.eventuallyWait(1)
	r.boxes.SetImage("program-2")
	r.want(1)
	r.eventually("the member runs", func() bool { return r.members("m-1-1") })
	if got := r.images()["m-1-1"]; got != "program-2" {
		t.Errorf("it runs %s", got)
	}
	after := r.eventuallyWait(1)
	if slices.Equal(before, after) {
		t.Errorf("%v waits still", after)
	}
	r.eventually("the one that waits now is new", func() bool { return r.images()["blank"] == "program-2" })
}

func TestAProgramThatCannotBeTold(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.boxes.FailWith(func(op, _ string) error {
		if op == "image" {
			return errs.New(errs.Unavailable, "the program is missing").WithHint("make build")
		}
		return nil
	})
	r.start()
	r.want(1)
	r.eventually("members start, the problem is said", func() bool {
		report := r.lastReport()
		return r.members("m-1-1") && report.Image == "" && slices.Contains(report.Problems, "the program is missing (make build)")
	})
	r.boxes.FailWith(nil)
	r.eventually("it is over", func() bool { return r.reported()[""] == "program-1" && len(r.lastReport().Problems) == 0 })
}

func TestBlanksThatCannotBeAreSaid(t *testing.T) {
	t.Parallel()
	said := func(r *rig, text string) func() bool {
		return func() bool {
			return slices.ContainsFunc(r.lastReport().Problems, func(p string) bool { return strings.Contains(p, text) })
		}
	}
	for name, tc := range map[string]struct {
		spoil func(r *rig)
		text  string
	}{
		"they end": {func(r *rig) {
			r.boxes.End(r.eventuallyWait(1)[0], sandbox.Exit{Code: 1, Reason: "exit status 1", LogTail: "first\nit is for another machine\n"})
		}, "started in advance ended: exit status 1; it wrote: it is for another machine"},
		"they don't start": {func(r *rig) {
			r.boxes.FailWith(func(op, _ string) error {
				if op == "prepare" {
					return errs.New(errs.Unavailable, "exec format error").WithHint("build it for this machine")
				}
				return nil
			})
			r.boxes.SetImage("program-2") // what waits is made anew
		}, "no member can be started in advance: exec format error (build it for this machine)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.pool, r.retry = 1, time.Hour // until the program changes
			r.start()
			r.want()
			r.eventuallyWait(1)
			tc.spoil(r)
			r.eventually("the problem is said", said(r, tc.text))
			r.boxes.FailWith(nil)
			r.boxes.SetImage("program-3")
			r.eventuallyWait(1)
			r.eventually("it is over", func() bool { return len(r.lastReport().Problems) == 0 })
		})
	}
}
