package core

import (
	"cmp"
	"time"
)

// FlowLog says whether hosts write down the flows that an NSG decides about, and how much
// of that they keep.
type FlowLog struct {
	Enabled bool `json:"enabled,omitempty"`
	// Interval is the time between the entries of a flow that goes on.
	Interval Duration `json:"interval,omitempty"`
	// RetentionDays is how long a file is kept.
	RetentionDays int `json:"retentionDays,omitempty"`
	// MaxMiB bounds the files of one virtual network on one host: the oldest go.
	MaxMiB int `json:"maxMiB,omitempty"`
}

// WithDefaults fills in what is not stated: every minute, a week, 256 MiB.
func (f FlowLog) WithDefaults() FlowLog {
	f.Interval = cmp.Or(f.Interval, Duration(time.Minute))
	f.RetentionDays = cmp.Or(f.RetentionDays, 7)
	f.MaxMiB = cmp.Or(f.MaxMiB, 256)
	return f
}
