package upstream

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/miekg/dns"
)

// Result classes what a server did with a question.
type Result int

// The results.
const (
	Answered    Result = iota // with records, or by "there is none"
	Failed                    // answered, but not the question: SERVFAIL, REFUSED, nonsense
	Silent                    // no answer in its time
	Unreachable               // the network says that nothing is there
	Cut                       // not waited for: the question itself ended
	NotAsked                  // skipped: down, or no time left
)

// Outcome is what one server did.
type Outcome struct {
	Server string // as ServerName writes it
	Result Result
	What   string // "NXDOMAIN", "no answer in 2s"
	// Code and Why are the server's own reason, an extended error (RFC 8914), if it gave one.
	Code uint16
	Why  string
}

// String returns "10.1.0.53: no answer in 2s".
func (o Outcome) String() string {
	if o.Why != "" {
		return o.Server + ": " + o.What + " (" + o.Why + ")"
	}
	return o.Server + ": " + o.What
}

// Outcomes are those of one question, in the order in which the servers stand.
type Outcomes []Outcome

// String returns "10.1.0.53: no answer in 2s; 10.1.0.54: NXDOMAIN".
func (os Outcomes) String() string {
	parts := make([]string, len(os))
	for i, o := range os {
		parts[i] = o.String()
	}
	return strings.Join(parts, "; ")
}

// Only reports whether no server did anything but the results named.
func (os Outcomes) Only(results ...Result) bool {
	return len(os) > 0 && !slices.ContainsFunc(os, func(o Outcome) bool { return !slices.Contains(results, o.Result) })
}

// ServerName is how a server is shown: its address, with the port if that is not 53.
func ServerName(address string) string {
	if host, port, err := net.SplitHostPort(address); err == nil && port == "53" {
		return host
	}
	return address
}

// maxText bounds a text from elsewhere, in bytes.
const maxText = 500

// Printable keeps a text to what a terminal may be shown, and to 500 bytes.
func Printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText-3], "") + "..."
	}
	return s
}

// answered words an answer.
func answered(m *dns.Msg) string {
	if m.Rcode == dns.RcodeSuccess && len(m.Answer) == 0 {
		return "no such record"
	}
	return rcodeName(m.Rcode)
}

func rcodeName(code int) string {
	if s, ok := dns.RcodeToString[code]; ok {
		return s
	}
	return fmt.Sprintf("code %d", code)
}

// short prints a duration without more digits than a person wants.
func short(d time.Duration) string {
	if d >= time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Millisecond).String()
}
