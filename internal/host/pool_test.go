package host

import (
	"errors"
	"slices"
	"strings"
	"testing"

	netfake "github.com/sluice-gateway/sluice/internal/hostnet/fake"
	"github.com/sluice-gateway/sluice/internal/sandbox"
	boxfake "github.com/sluice-gateway/sluice/internal/sandbox/fake"
)

// blanks lists what waits on the rig's machine: sandboxes, each with its namespace.
func (r *rig) blanks() (names []string, whole bool) {
	for _, id := range r.boxes.IDs() {
		if strings.HasPrefix(id, "blank-") {
			names = append(names, id)
		}
	}
	return names, slices.Equal(names, r.net.Prepared())
}

func (r *rig) eventuallyWait(n int) []string {
	r.t.Helper()
	var names []string
	r.eventually("blanks wait", func() (whole bool) {
		names, whole = r.blanks()
		return whole && len(names) == n
	})
	return names
}

// members says whether exactly these members run, whatever waits.
func (r *rig) members(want ...string) bool {
	var got []string
	for _, id := range r.boxes.IDs() {
		if !strings.HasPrefix(id, "blank-") {
			got = append(got, id)
		}
	}
	running := 0
	for _, m := range r.lastReport().Members {
		if m.Running {
			running++
		}
	}
	return slices.Equal(want, got) && running == len(want)
}

func TestPoolIsFilledAndUsed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.pool = 2
	stop := r.start()
	before := r.eventuallyWait(2)
	if list := r.lastReport().Members; len(list) > 0 {
		t.Errorf("blanks are reported as members: %+v", list)
	}
	r.want(1)
	r.eventually("the member runs", func() bool { return r.members("m-1-1") })
	spec, _ := r.boxes.Spec("m-1-1")
	if spec.Labels[labelMember] != "m-1" || len(spec.Boot) == 0 {
		t.Errorf("it was adopted as %+v", spec)
	}
	after := r.eventuallyWait(2)
	if used := slices.DeleteFunc(slices.Clone(before), func(n string) bool { return slices.Contains(after, n) }); len(used) != 1 {
		t.Errorf("of the blanks %v there are %v left", before, after)
	}
	// More at once than wait: the rest is started in the ordinary way.
	r.want(1, 2, 3, 4)
	r.eventually("all run", func() bool { return r.members("m-1-1", "m-2-2", "m-3-3", "m-4-4") })
	r.eventuallyWait(2)
	stop()
	if names, _ := r.blanks(); len(names) > 0 || len(r.net.Prepared()) > 0 {
		t.Errorf("the host left %v and %v", names, r.net.Prepared())
	}
	if !r.members("m-1-1", "m-2-2", "m-3-3", "m-4-4") {
		t.Errorf("the members went, too: %v", r.boxes.IDs())
	}
}

func TestBlanksOfAnEarlierProcessGo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.pool = 1
	died := boxfake.New(r.boxes)
	t.Cleanup(func() { died.Close() })
	netns, err := netfake.New(r.net).Prepare(t.Context(), "blank-old")
	if err != nil {
		t.Fatal(err)
	}
	if err := died.Prepare(t.Context(), "blank-old", netns); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.want(1)
	r.eventually("the member runs", func() bool { return r.members("m-1-1") })
	if names := r.eventuallyWait(1); names[0] == "blank-old" {
		t.Error("the earlier process's waits still")
	}
}

func TestBlankThatEndsIsReplaced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.pool = 1
	r.start()
	r.want()
	first := r.eventuallyWait(1)
	r.boxes.End(first[0], sandbox.Exit{Code: 7, Reason: "exit status 7"})
	r.eventually("another waits", func() bool {
		names, whole := r.blanks()
		return whole && len(names) == 1 && names[0] != first[0]
	})
}

func TestMemberStartsWhateverThePool(t *testing.T) {
	t.Parallel()
	for name, fails := range map[string]string{"none can be prepared": "prepare", "it can't be adopted": "adopt"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.pool = 1
			r.boxes.FailWith(func(op, _ string) error {
				if op == fails {
					return errors.New("no")
				}
				return nil
			})
			r.start()
			if fails == "adopt" {
				r.eventuallyWait(1)
			}
			r.want(1)
			r.eventually("the member runs", func() bool { return r.members("m-1-1") })
			r.boxes.FailWith(nil)
			r.eventuallyWait(1)
		})
	}
}

// TestPromisedInVain: the member whose network could not be made goes, and with it the
// blank that it would have had.
func TestPromisedInVain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.pool = 1
	r.net.Fail("member m-1", errors.New("no"))
	r.start()
	first := r.eventuallyWait(1)
	r.want(1)
	r.eventually("another waits beside the promised one", func() bool {
		names, whole := r.blanks()
		return whole && len(names) == 2
	})
	r.net.Fail("member m-1", nil)
	r.want()
	r.eventually("the promised one is gone", func() bool {
		names, whole := r.blanks()
		return whole && len(names) == 1 && names[0] != first[0]
	})
}
