//go:build race

package stack

const (
	raceEnabled = true
	raceEnv     = "CGO_ENABLED=1"
)
