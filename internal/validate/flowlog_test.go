package validate

import (
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

func TestFlowLog(t *testing.T) {
	for name, tc := range map[string]struct {
		log  core.FlowLog
		want string // the field that is refused
	}{
		"defaults":             {core.FlowLog{Enabled: true}, ""},
		"all stated":           {core.FlowLog{Enabled: true, Interval: core.Duration(10 * time.Second), RetentionDays: 365, MaxMiB: 16}, ""},
		"too often":            {core.FlowLog{Interval: core.Duration(9 * time.Second)}, "flowLog.interval"},
		"too seldom":           {core.FlowLog{Interval: core.Duration(2 * time.Hour)}, "flowLog.interval"},
		"no whole seconds":     {core.FlowLog{Interval: core.Duration(10500 * time.Millisecond)}, "flowLog.interval"},
		"never":                {core.FlowLog{Interval: core.Never}, "flowLog.interval"},
		"kept for too long":    {core.FlowLog{RetentionDays: 366}, "flowLog.retentionDays"},
		"negative days":        {core.FlowLog{RetentionDays: -1}, "flowLog.retentionDays"},
		"too small":            {core.FlowLog{MaxMiB: 1}, "flowLog.maxMiB"},
		"larger than any disk": {core.FlowLog{MaxMiB: 1<<20 + 1}, "flowLog.maxMiB"},
	} {
		t.Run(name, func(t *testing.T) {
			var fields []string
			for _, p := range Set([]core.Resource{&core.NetworkSecurityGroup{Name: "n", FlowLog: tc.log}}) {
				fields = append(fields, p.Field)
			}
			if tc.want == "" && len(fields) > 0 || tc.want != "" && (len(fields) != 1 || fields[0] != tc.want) {
				t.Errorf("refused: %q; want %q", fields, tc.want)
			}
		})
	}
}
