package schedule

import (
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

func parse(t *testing.T, cron, zone string, act core.ScheduleAction) Entry {
	t.Helper()
	e, err := Parse(core.ScheduledAct{Cron: cron, TimeZone: zone, Action: act})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func at(t *testing.T, text string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestNext(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ cron, zone, after, want string }{
		"a working day":                  {"0 7 * * 1-5", "Europe/Berlin", "2026-11-23T05:00:00Z", "2026-11-23T06:00:00Z"},
		"over the weekend":               {"0 7 * * 1-5", "Europe/Berlin", "2026-11-27T07:00:00Z", "2026-11-30T06:00:00Z"},
		"in summer":                      {"0 7 * * 1-5", "Europe/Berlin", "2026-07-01T00:00:00Z", "2026-07-01T05:00:00Z"},
		"without a zone":                 {"30 6 * * *", "", "2026-11-23T05:00:00Z", "2026-11-23T06:30:00Z"},
		"an hour that the clock skips":   {"30 2 * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", "2026-03-29T01:00:00Z"},
		"and the day after":              {"30 2 * * *", "Europe/Berlin", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"},
		"the hour after it":              {"0 3 * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", "2026-03-29T01:00:00Z"},
		"one that New York skips":        {"15 2 * * *", "America/New_York", "2026-03-08T06:00:00Z", "2026-03-08T07:00:00Z"},
		"half an hour that is skipped":   {"15 2 * * *", "Australia/Lord_Howe", "2026-10-03T15:00:00Z", "2026-10-03T15:30:00Z"},
		"a midnight that is skipped":     {"0 0 * * *", "America/Santiago", "2026-09-06T03:00:00Z", "2026-09-06T04:00:00Z"},
		"an hour that comes twice":       {"30 2 * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z"},
		"and its second time":            {"30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"},
		"one that New York shows twice":  {"30 1 * * *", "America/New_York", "2026-11-01T04:00:00Z", "2026-11-01T05:30:00Z"},
		"every quarter, in the second":   {"*/15 * * * *", "Europe/Berlin", "2026-10-25T01:20:00Z", "2026-10-25T02:00:00Z"},
		"the last second before is next": {"0 7 * * *", "UTC", "2026-11-23T06:59:59Z", "2026-11-23T07:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := parse(t, c.cron, c.zone, core.ScheduleWake).Next(at(t, c.after))
			if got.UTC().Format(time.RFC3339) != c.want {
				t.Errorf("%s, want %s", got.UTC().Format(time.RFC3339), c.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ cron, zone, field, says string }{
		"no expression":             {"", "UTC", "cron", "is not five fields"},
		"too few fields":            {"0 7 * *", "UTC", "cron", "is not five fields"},
		"seconds":                   {"0 0 7 * * 1", "UTC", "cron", "is not five fields"},
		"out of range":              {"60 7 * * *", "UTC", "cron", "above maximum"},
		"a name":                    {"@daily", "UTC", "cron", "is not five fields"},
		"a day that never is":       {"0 7 31 2 *", "UTC", "cron", "never comes"},
		"a zone in the wrong place": {"TZ=UTC 0 7 * * *", "", "cron", "belongs into timeZone"},
		"an unknown zone":           {"0 7 * * *", "Europe/Bielefeld", "timeZone", "Europe/Bielefeld"},
		"the machine's zone":        {"0 7 * * *", "Local", "timeZone", "Local"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Parse(core.ScheduledAct{Cron: c.cron, TimeZone: c.zone, Action: core.ScheduleWake})
			e, ok := err.(*Error)
			if !ok || e.Field != c.field || !strings.Contains(e.Reason, c.says) {
				t.Errorf("%v, want %s: …%s…", err, c.field, c.says)
			}
		})
	}
}

func TestDue(t *testing.T) {
	t.Parallel()
	day := []Entry{
		parse(t, "0 7 * * *", "UTC", core.ScheduleWake),
		parse(t, "0 19 * * *", "UTC", core.SchedulePause),
	}
	for name, c := range map[string]struct {
		entries      []Entry
		after, until string
		want         core.ScheduleAction
	}{
		"nothing":                  {day, "2026-11-23T07:00:00Z", "2026-11-23T18:59:59Z", ""},
		"the wake":                 {day, "2026-11-23T06:59:59Z", "2026-11-23T07:00:00Z", core.ScheduleWake},
		"the pause":                {day, "2026-11-23T18:00:00Z", "2026-11-23T19:30:00Z", core.SchedulePause},
		"the last of both":         {day, "2026-11-23T00:00:00Z", "2026-11-23T20:00:00Z", core.SchedulePause},
		"after months, a day back": {day, "2026-01-01T00:00:00Z", "2026-11-23T08:00:00Z", core.ScheduleWake},
		"the clock went back":      {day, "2026-11-23T08:00:00Z", "2026-11-23T06:00:00Z", ""},
		"at one moment":            {append(day, parse(t, "0 7 * * *", "UTC", core.SchedulePause)), "2026-11-23T06:00:00Z", "2026-11-23T08:00:00Z", core.SchedulePause},
		"no entries":               {nil, "2026-11-23T06:00:00Z", "2026-11-23T08:00:00Z", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, ok := Due(c.entries, at(t, c.after), at(t, c.until))
			if e.Act.Action != c.want || ok != (c.want != "") {
				t.Errorf("%q, %v; want %q", e, ok, c.want)
			}
		})
	}
}
