// Package upstream asks DNS servers in order until one has an answer, and tells what each of
// them did.
//
// It owns time-outs, the way from UDP to TCP, the checks of a reply, and the memory of
// which servers are down. It caches nothing and follows no names. Two callers share it: a
// virtual network's resolver (internal/resolver), and the member (internal/gateway).
package upstream
