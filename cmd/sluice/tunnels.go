package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// tunnelsFile is where a host leaves what its relay carried, for "sluice host status": only
// the host's own process knows it.
const tunnelsFile = "tunnels.json"

// toldTunnels is the content of that file.
type toldTunnels struct {
	At      time.Time           `json:"at"`
	Tunnels []core.TunnelReport `json:"tunnels"`
}

// tellTunnels returns what writes the file, whole or not at all.
func (f *hostFlags) tellTunnels(log *slog.Logger) func([]core.TunnelReport) {
	return func(list []core.TunnelReport) {
		doc, err := json.Marshal(toldTunnels{At: time.Now(), Tunnels: list})
		if err == nil {
			path := filepath.Join(f.runDir, tunnelsFile)
			if err = os.WriteFile(path+".new", doc, 0o600); err == nil {
				err = os.Rename(path+".new", path)
			}
		}
		if err != nil {
			log.Warn("what the relay carried can't be left for \"sluice host status\"", "error", err)
		}
	}
}

// tunnelItems lists what the relay carried, for a host's status.
func (f *hostFlags) tunnelItems(now time.Time) ([]hostnet.Item, error) {
	doc, err := os.ReadFile(filepath.Join(f.runDir, tunnelsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var told toldTunnels
	if err == nil {
		err = json.Unmarshal(doc, &told)
	}
	if err != nil {
		return nil, fmt.Errorf("what the relay carried: %w", err)
	}
	items := make([]hostnet.Item, len(told.Tunnels))
	for i, t := range told.Tunnels {
		items[i] = hostnet.Item{Type: "tunnel", Name: t.Member, Why: fmt.Sprintf(
			"%d connections to the service, %d in all, %d refused; %d bytes to the service, %d to the member (%s ago)",
			t.Connections, t.Accepted, t.Refused, t.ToService, t.ToMember, now.Sub(told.At).Round(time.Second))}
	}
	return items, nil
}
