package linux

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// sysctl is a value below /proc/sys/net of the calling thread's namespace. An
// optional one is left alone where the kernel does not know it.
type sysctl struct {
	key, value string
	optional   bool
}

const sysctlDir = "/proc/sys/net"

func writeAll(values []sysctl) error {
	for _, v := range values {
		err := os.WriteFile(filepath.Join(sysctlDir, v.key), []byte(v.value), 0)
		if v.optional && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("setting %s to %s: %w", v.key, v.value, err)
		}
	}
	return nil
}

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile(filepath.Join(sysctlDir, key))
	return strings.TrimSpace(string(b)), err
}

// ipv6Off is first wherever it is used: interfaces made later inherit it.
var ipv6Off = []sysctl{
	{key: "ipv6/conf/all/disable_ipv6", value: "1", optional: true},
	{key: "ipv6/conf/default/disable_ipv6", value: "1", optional: true},
}

// quiet is what holds in each of our namespaces, forwarding or not. Forwarding comes
// first, because the kernel resets the others when it changes.
func quiet(forward string) []sysctl {
	out := append([]sysctl{}, ipv6Off...)
	out = append(out, sysctl{key: "ipv4/ip_forward", value: forward})
	for _, of := range []string{"all", "default"} {
		dir := "ipv4/conf/" + of + "/"
		out = append(out,
			sysctl{key: dir + "rp_filter", value: "1"},
			sysctl{key: dir + "accept_redirects", value: "0"},
			sysctl{key: dir + "secure_redirects", value: "0"},
			sysctl{key: dir + "send_redirects", value: "0"},
			sysctl{key: dir + "accept_source_route", value: "0"},
			sysctl{key: dir + "proxy_arp", value: "0"},
		)
	}
	return out
}

// memberValues also turn MPTCP off: it goes round Landlock's rules for TCP.
func memberValues() []sysctl {
	return append(quiet("0"), sysctl{key: "mptcp/enabled", value: "0", optional: true})
}

// memory keeps the sysctl values of the host's own namespace as they were before we
// changed them. It is written to disk before the change, so that a crash forgets none.
type memory struct{ file string }

// changed is one entry of memory.
type changed struct {
	Was string `json:"was"`
	Now string `json:"now"`
}

func (m memory) load() (map[string]changed, error) {
	b, err := os.ReadFile(m.file)
	if errors.Is(err, os.ErrNotExist) {
		return map[string]changed{}, nil
	}
	if err != nil {
		return nil, err
	}
	out := map[string]changed{}
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", m.file, err)
	}
	return out, nil
}

func (m memory) save(entries map[string]changed) error {
	if len(entries) == 0 {
		err := os.Remove(m.file)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	b, err := json.Marshal(entries)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(m.file), 0o700); err != nil {
		return err
	}
	return replaceFile(m.file, b)
}

// replaceFile writes a file so that a crash leaves the old or the new one.
func replaceFile(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// set changes a value of the calling thread's namespace and remembers what it was: before
// others changed it, if they did.
func (m memory) set(key, value string, others map[string]string) error {
	now, err := readSysctl(key)
	if err != nil {
		return err
	}
	was, shared := others[key]
	if !shared {
		was = now
	}
	if now == value && was == value {
		return nil
	}
	entries, err := m.load()
	if err != nil {
		return err
	}
	entry := changed{Was: was, Now: value}
	if e, ok := entries[key]; ok {
		entry.Was = e.Was
	}
	if entries[key] != entry {
		entries[key] = entry
		if err := m.save(entries); err != nil {
			return err
		}
	}
	if now == value {
		return nil
	}
	return writeAll([]sysctl{{key: key, value: value}})
}

// restore puts back every remembered value whose key is not in keep, and does then, if it is
// not nil, before it forgets them. A value that somebody else changed since is left as it
// is; so is one that others still need, who put it back in their turn.
func (m memory) restore(keep, others map[string]string, then func() error) error {
	entries, err := m.load()
	if err != nil {
		return err
	}
	var failed []error
	before := len(entries)
	for _, key := range sortedKeys(entries) {
		if _, stays := keep[key]; stays {
			continue
		}
		_, needed := others[key]
		if now, err := readSysctl(key); err == nil && now == entries[key].Now && !needed {
			err := writeAll([]sysctl{{key: key, value: entries[key].Was}})
			if err != nil && !errors.Is(err, os.ErrNotExist) { // it went with its interface just now
				failed = append(failed, err)
				continue
			}
		}
		delete(entries, key)
	}
	if then != nil {
		if err := then(); err != nil {
			return errors.Join(append(failed, err)...)
		}
	}
	if len(entries) != before {
		failed = append(failed, m.save(entries))
	}
	return errors.Join(failed...)
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
