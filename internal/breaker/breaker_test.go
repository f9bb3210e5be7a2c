package breaker

import (
	"strings"
	"testing"
	"time"
)

// TestBreaker plays words: "f" a failed query, "s" one that reached its source, "u" one that
// shows nothing, "ok" and "no" what Allow must say, a duration that passes. The end is the
// state that must come of it.
func TestBreaker(t *testing.T) { //nolint:dupword // scripts, not prose
	for _, tt := range []struct {
		name, script string
		want         State
		failures     int
	}{
		{"new", "ok", Available, 0},
		{"a few failures", "f f f f ok", Available, 4},
		{"a success forgets them", "f f f f s f f f f ok", Available, 4},
		{"too many in a row", "f f f f f no", Down, 5},
		{"one try after a rest", "f f f f f 1999ms no 1ms ok no no", Trying, 5},
		{"the try succeeds", "f f f f f 2s ok s ok ok", Available, 0},
		{"the try fails: twice the rest", "f f f f f 2s ok f 3999ms no 1ms ok", Trying, 6},
		{"the try shows nothing: another", "f f f f f 2s ok u ok", Trying, 5},
		{"those that were on their way don't prolong it", "f f f f f f f f 2s ok", Trying, 8},
		{"a try that shows nothing for long is not waited for", "f f f f f 2s ok 29999ms no 1ms ok no", Trying, 5},
		{"the rest is bounded", "f f f f f 2s ok f 4s ok f 8s ok f 16s ok f 30s ok f 30s ok", Trying, 10},
		{"nobody tries until somebody asks", "f f f f f 2s", Trying, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b Breaker
			now := time.Unix(1000, 0)
			for w := range strings.FieldsSeq(tt.script) {
				switch w {
				case "f":
					b.Failed(now, "refused")
				case "s":
					b.Succeeded()
				case "u":
					b.Unknown()
				case "ok", "no":
					if got := b.Allow(now); got != (w == "ok") {
						t.Fatalf("allowed: %v, want %s", got, w)
					}
				default:
					d, err := time.ParseDuration(w)
					if err != nil {
						t.Fatal(err)
					}
					now = now.Add(d)
				}
			}
			s := b.Status(now)
			if s.State != tt.want || s.Failures != tt.failures || (s.State == Down) != !s.Next.IsZero() {
				t.Errorf("got %+v, want %s after %d failures", s, tt.want, tt.failures)
			}
		})
	}
}
