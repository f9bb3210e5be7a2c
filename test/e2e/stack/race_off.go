//go:build !race

package stack

const (
	raceEnabled = false
	raceEnv     = "CGO_ENABLED=0"
)
