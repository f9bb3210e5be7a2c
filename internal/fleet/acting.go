package fleet

import (
	"context"
	"slices"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/store"
)

// Acting is how far a host is with the newest goal state.
type Acting struct {
	Host      string   `json:"host"`
	Connected bool     `json:"connected"`
	Acted     bool     `json:"acted"`              // it has reported that version, or a later one
	Problems  []string `json:"problems,omitempty"` // that it has reported since then and not before
}

// AwaitGoals waits until every host that runs a member of a tenant has acted on what the
// store holds now, and returns how far each is then, or when ctx ends. A host that is not
// connected is not waited for.
func (f *Fleet) AwaitGoals(ctx context.Context, t core.TenantID) ([]Acting, error) {
	versions, err := f.goalVersions(ctx)
	if err != nil {
		return nil, err
	}
	var out []Acting
	_ = f.wait(ctx, func() bool { // that somebody has not acted in time is an answer
		out = nil
		over := true
		for _, host := range f.hostsOf(t) {
			a := Acting{Host: host}
			if s := f.hosts[host]; s != nil {
				a.Connected, a.Acted = true, s.info.SeenVersion >= versions[host]
				a.Problems = s.problemsSince(versions[host])
			}
			over = over && (a.Acted || !a.Connected)
			out = append(out, a)
		}
		return over
	})
	return out, nil
}

// Behind reports whether a host is connected and has not acted on the newest goal state yet.
func (f *Fleet) Behind(ctx context.Context, host string) bool {
	versions, err := f.goalVersions(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.hosts[host]
	return err == nil && s != nil && s.info.SeenVersion < versions[host]
}

func (f *Fleet) goalVersions(ctx context.Context) (map[string]int64, error) {
	versions := map[string]int64{}
	err := f.opts.Store.Read(ctx, func(tx store.Tx) error {
		hosts, err := tx.ListHosts()
		for _, h := range hosts {
			versions[h.Name] = h.GoalVersion
		}
		return err
	})
	return versions, err
}

// hostsOf lists the hosts that run members of a tenant. The caller holds mu.
func (f *Fleet) hostsOf(t core.TenantID) (names []string) {
	for _, m := range f.live {
		if m.Tenant == t {
			names = append(names, m.Host)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// told takes in the problems of a report, each with the version at which it came up. The
// caller holds mu.
func (s *session) told(version int64, problems []string) {
	since := make(map[string]int64, len(problems))
	for _, p := range problems {
		since[p] = version
		if before, known := s.problemSince[p]; known {
			since[p] = before
		}
	}
	s.problemSince = since
	s.info.SeenVersion, s.info.Problems = version, problems
}

// problemsSince lists what came up at a version or later. The caller holds mu.
func (s *session) problemsSince(version int64) (out []string) {
	for _, p := range s.info.Problems {
		if s.problemSince[p] >= version {
			out = append(out, p)
		}
	}
	return out
}
