package admission

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/testseed"
)

var wide = Limits{Total: 1000, PerUser: 1000}

// play plays words: "a/s" enters a query of user a to source s, "+a/s" begins one without
// waiting, "-a/s" ends one that Next or Begin counted, "!" serves the next, "xNAME" leaves.
func play(t *testing.T, script string, lim Limits) (served []string, l *Line[string]) {
	t.Helper()
	l = &Line[string]{}
	running := map[string][]*Share[string]{}
	tickets := map[string]*Ticket[string]{}
	flow := func(w string) Flow {
		name, _, _ := strings.Cut(w, ":")
		u, s, _ := strings.Cut(name, "/")
		return Flow{u, s}
	}
	for w := range strings.FieldsSeq(script) {
		switch {
		case w == "!":
			ticket, share := l.Next()
			if ticket == nil {
				served = append(served, "-")
				continue
			}
			served = append(served, ticket.Value)
			f := flow(ticket.Value)
			running[f.User+"/"+f.Source] = append(running[f.User+"/"+f.Source], share)
		case w[0] == '+':
			running[w[1:]] = append(running[w[1:]], l.Begin(flow(w[1:])))
		case w[0] == '-':
			l.Done(running[w[1:]][0])
			running[w[1:]] = running[w[1:]][1:]
		case w[0] == 'x':
			if !l.Leave(tickets[w[1:]]) {
				t.Errorf("%s had left already", w[1:])
			}
		default:
			ticket, err := l.Enter(flow(w), w, lim)
			if err != nil {
				t.Fatal(err)
			}
			tickets[w] = ticket
		}
	}
	return served, l
}

func TestNext(t *testing.T) {
	for _, tt := range []struct{ name, script, want string }{
		{"nobody waits", "!", "-"},
		{"first in, first out within a flow", "a/s:1 a/s:2 a/s:3 ! ! !", "a/s:1 a/s:2 a/s:3"},
		{"users take turns", "a/s:1 a/s:2 a/s:3 b/s:1 b/s:2 ! ! ! ! !", "a/s:1 b/s:1 a/s:2 b/s:2 a/s:3"},
		{"sources of one user take turns", "a/s:1 a/s:2 a/t:1 ! ! !", "a/s:1 a/t:1 a/s:2"},
		{"many sources give a user no more", "a/s:1 a/t:1 a/u:1 b/s:1 ! ! !", "a/s:1 b/s:1 a/t:1"},
		{"who has more running waits", "+a/s +a/s a/s:1 b/s:1 b/s:2 b/s:3 ! ! ! !", "b/s:1 b/s:2 a/s:1 b/s:3"},
		{"what ended does not count", "+a/s +a/s a/s:1 b/s:1 -a/s -a/s +b/s ! !", "a/s:1 b/s:1"},
		{"nor does it for a source", "+a/s +a/s -a/s -a/s +a/t a/t:1 a/s:1 !", "a/s:1"},
		{"whoever was served longest ago", "+a/s -a/s +b/s -b/s b/s:1 a/s:1 ! !", "a/s:1 b/s:1"},
		{"who gave up is passed over", "a/s:1 a/s:2 b/s:1 xa/s:1 xb/s:1 ! !", "a/s:2 -"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			served, _ := play(t, tt.script, wide)
			if diff := cmp.Diff(strings.Fields(tt.want), served); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestOrderIsWhatNextDoes(t *testing.T) {
	_, l := play(t, "+a/s a/s:1 a/s:2 a/t:1 b/s:1 c/t:1 b/s:2", wide)
	want := l.Order()
	if again := l.Order(); !cmp.Equal(want, again) || l.Len() != 6 {
		t.Fatalf("looking changed the line: %v, then %v; %d wait", want, again, l.Len())
	}
	var got []string
	for ticket, _ := l.Next(); ticket != nil; ticket, _ = l.Next() {
		got = append(got, ticket.Value)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestDrainEmptiesTheLine(t *testing.T) {
	_, l := play(t, "a/s:1 b/s:1 a/s:2", wide)
	if diff := cmp.Diff([]string{"a/s:1", "b/s:1", "a/s:2"}, l.Drain()); diff != "" {
		t.Error(diff)
	}
	if ticket, _ := l.Next(); ticket != nil || l.Len() != 0 {
		t.Errorf("%d wait after a drain", l.Len())
	}
	if _, err := l.Enter(Flow{"a", "s"}, "again", Limits{Total: 1, PerUser: 1}); err != nil {
		t.Errorf("nobody waits, and yet: %v", err)
	}
}

func TestFull(t *testing.T) {
	_, l := play(t, "a/s:1 a/t:2", Limits{Total: 3, PerUser: 2})
	var full *FullError
	if _, err := l.Enter(Flow{"a", "u"}, "3", Limits{Total: 3, PerUser: 2}); !errors.As(err, &full) || !full.OfUser {
		t.Errorf("a user's third: %v", err)
	}
	if _, err := l.Enter(Flow{"b", "s"}, "3", Limits{Total: 3, PerUser: 2}); err != nil {
		t.Errorf("another user's first: %v", err)
	}
	if _, err := l.Enter(Flow{"c", "s"}, "4", Limits{Total: 3, PerUser: 2}); !errors.As(err, &full) || full.OfUser {
		t.Errorf("a fourth: %v", err)
	}
}

// TestFair walks at random and checks: nobody is lost or served twice, flows keep their
// order, and whoever is served had no more running than anybody else who waited.
func TestFair(t *testing.T) {
	first := testseed.Of(t)
	for seed := first; seed < first+50; seed++ {
		walk(t, rand.New(rand.NewPCG(seed, 1)))
	}
}

type entry struct {
	flow   Flow
	number int
}

func walk(t *testing.T, rng *rand.Rand) {
	t.Helper()
	l := &Line[entry]{}
	waiting := map[Flow][]entry{}
	tickets := map[int]*Ticket[entry]{}
	running := map[string]int{}
	var shares []*Share[entry]
	var flows []Flow
	for n := range 400 {
		f := Flow{string(rune('a' + rng.IntN(5))), string(rune('s' + rng.IntN(3)))}
		switch k := rng.IntN(10); {
		case k < 5:
			e := entry{f, n}
			ticket, err := l.Enter(f, e, wide)
			if err != nil {
				t.Fatal(err)
			}
			waiting[f], tickets[n] = append(waiting[f], e), ticket
		case k < 8:
			ticket, share := l.Next()
			if ticket == nil {
				continue
			}
			e := ticket.Value
			if len(waiting[e.flow]) == 0 || waiting[e.flow][0] != e {
				t.Fatalf("%v was served out of its turn: %v", e, waiting[e.flow])
			}
			for o, list := range waiting {
				if len(list) > 0 && running[o.User] < running[e.flow.User] {
					t.Fatalf("%v was served with %d running although %v waited with %d", e, running[e.flow.User], o, running[o.User])
				}
			}
			waiting[e.flow] = waiting[e.flow][1:]
			running[e.flow.User]++
			shares, flows = append(shares, share), append(flows, e.flow)
		case k < 9 && len(shares) > 0:
			i := rng.IntN(len(shares))
			l.Done(shares[i])
			running[flows[i].User]--
			shares, flows = append(shares[:i], shares[i+1:]...), append(flows[:i], flows[i+1:]...)
		case len(waiting[f]) > 0:
			i := rng.IntN(len(waiting[f]))
			if !l.Leave(tickets[waiting[f][i].number]) {
				t.Fatalf("%v is not in the line", waiting[f][i])
			}
			waiting[f] = append(append([]entry(nil), waiting[f][:i]...), waiting[f][i+1:]...)
		}
		total := 0
		for _, list := range waiting {
			total += len(list)
		}
		if total != l.Len() {
			t.Fatalf("%d wait, the line says %d", total, l.Len())
		}
	}
}

// TestForgets keeps a line from growing with every user who ever came.
func TestForgets(t *testing.T) {
	l := &Line[int]{}
	for i := range 10_000 {
		l.Done(l.Begin(Flow{User: string(rune(i)), Source: "s"}))
	}
	if len(l.users) > maxIdle {
		t.Errorf("%d users are remembered", len(l.users))
	}
}
