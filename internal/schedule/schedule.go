// Package schedule reads cron expressions with a time zone and says which of a
// gateway's scheduled acts are due.
//
// It is pure. Validation and the fleet call it.
package schedule

import (
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/sluice-gateway/sluice/internal/core"
)

// Entry is one act and when it recurs.
type Entry struct {
	Act   core.ScheduledAct
	text  string
	clock cron.Schedule // what a clock on the wall shows, as if it were UTC
	zone  *time.Location
}

// String says what the entry is, for the reason of what it causes.
func (e Entry) String() string { return e.text }

// Error says which field of an act is wrong, and why.
type Error struct {
	Field  string // cron, timeZone
	Reason string
}

// Error implements error.
func (e *Error) Error() string { return e.Field + ": " + e.Reason }

// fields are those of a cron expression, without seconds and without names such as @daily.
const fields = cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow

// Parse reads an act. The error is an *Error.
func Parse(a core.ScheduledAct) (Entry, error) {
	zone := a.TimeZone
	if zone == "" {
		zone = "UTC"
	}
	loc, err := time.LoadLocation(zone)
	if err != nil || zone == "Local" {
		return Entry{}, &Error{"timeZone", fmt.Sprintf("%q is not a time zone such as Europe/Berlin or UTC", a.TimeZone)}
	}
	if strings.Contains(a.Cron, "=") {
		return Entry{}, &Error{"cron", fmt.Sprintf("%q names a time zone, which belongs into timeZone", a.Cron)}
	}
	spec, err := cron.NewParser(fields).Parse(a.Cron)
	if err != nil && len(strings.Fields(a.Cron)) == 5 {
		return Entry{}, &Error{"cron", fmt.Sprintf("%q is not a schedule: %s", a.Cron, err)}
	}
	if err != nil {
		return Entry{}, &Error{"cron", fmt.Sprintf("%q is not five fields (minute, hour, day of the month, month, day of the week), such as \"0 7 * * 1-5\": %s", a.Cron, err)}
	}
	clock := spec.(*cron.SpecSchedule)
	clock.Location = time.UTC
	if clock.Next(reference).IsZero() {
		return Entry{}, &Error{"cron", fmt.Sprintf("%q never comes", a.Cron)}
	}
	return Entry{Act: a, clock: clock, zone: loc, text: fmt.Sprintf("its schedule: %s at %q, %s", a.Action, a.Cron, zone)}, nil
}

// reference is a time from which an expression that ever matches does so within years.
var reference = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// Next returns the first time after another at which an entry is due. A time that the clock
// skips in spring is the moment at which it is put forward; of one that it shows twice in
// autumn only the first counts.
func (e Entry) Next(after time.Time) time.Time {
	local := after.In(e.zone)
	shown := time.Date(local.Year(), local.Month(), local.Day(), local.Hour(), local.Minute(), local.Second(), local.Nanosecond(), time.UTC)
	for {
		if shown = e.clock.Next(shown); shown.IsZero() {
			return shown
		}
		if at := firstShown(shown, e.zone); at.After(after) {
			return at
		}
	}
}

// firstShown returns when clocks of a zone first show a time or, if they never do, a later one.
func firstShown(shown time.Time, zone *time.Location) time.Time {
	at := time.Date(shown.Year(), shown.Month(), shown.Day(), shown.Hour(), shown.Minute(), shown.Second(), 0, zone)
	since, until := at.ZoneBounds()
	_, offset := at.Zone()
	if skipped := at.Hour() != shown.Hour() || at.Minute() != shown.Minute(); skipped {
		if at.Add(time.Duration(offset)*time.Second).UTC().After(shown) && !since.IsZero() {
			return since
		}
		return until
	}
	if since.IsZero() {
		return at
	}
	_, before := since.Add(-time.Second).Zone()
	if earlier := at.Add(time.Duration(offset-before) * time.Second); earlier.Before(since) {
		return earlier
	}
	return at
}

// maxMissed is how far back a service that was away looks for what it missed.
const maxMissed = 24 * time.Hour

// Due returns the entry that was due last after one time and until another, or false if
// there was none: of several that were missed only the last one counts. Of two at the same
// moment it is the one that stands later.
func Due(entries []Entry, after, until time.Time) (Entry, bool) {
	if earliest := until.Add(-maxMissed); after.Before(earliest) {
		after = earliest
	}
	var best Entry
	var at time.Time
	for _, e := range entries {
		for next := e.Next(after); !next.IsZero() && !next.After(until); next = e.Next(next) {
			if !next.Before(at) {
				best, at = e, next
			}
		}
	}
	return best, !at.IsZero()
}
