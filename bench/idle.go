package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/client"
)

// idleFor is how long members that do nothing are watched.
const idleFor = 20 * time.Second

// idle wakes many gateways of one member each, leaves them alone, and reads what they use.
func idle(ctx context.Context, e *env) (*result, error) {
	if err := e.gateway(ctx, "pause"); err != nil {
		return nil, err
	}
	names := make([]string, e.scale.Idle)
	var text strings.Builder
	for i := range names {
		names[i] = fmt.Sprintf("idle-%03d", i)
		fmt.Fprintf(&text, "kind: Gateway\nname: %s\nvnet: bench\nsubnet: gateways\nmembers: {min: 0, max: 1}\nautoPause: never\n---\n", names[i])
	}
	if err := e.applyText(text.String()); err != nil {
		return nil, err
	}
	defer func() {
		for _, name := range names {
			e.stack.Must("delete", "gateway", name)
		}
	}()
	c, err := e.client()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	s := &samples{}
	before := availableMB()
	begun := time.Now()
	if err := wakeAll(ctx, c, names); err != nil {
		return nil, err
	}
	s.add("waking all", "ms", ms(time.Since(begun)))
	pids, err := e.memberPIDs()
	if err != nil {
		return nil, err
	}
	s.add("running", "", float64(len(pids)))
	if err := e.watchIdle(ctx, pids, s); err != nil {
		return nil, err
	}
	s.add("machine's memory", "MB", before-availableMB())
	for _, pid := range pids {
		kb, err := strconv.ParseFloat(strings.TrimSuffix(fileField(fmt.Sprintf("/proc/%d/status", pid), "VmRSS", ":"), " kB"), 64)
		if err != nil {
			return nil, fmt.Errorf("member's process %d: %w", pid, err)
		}
		s.add("resident", "MB", kb*1.024/1e3)
	}
	return &result{Rows: idleRows(e.scale.Idle, s), Samples: s.list}, nil
}

// wakeAll wakes gateways, four at a time.
func wakeAll(ctx context.Context, c *client.Client, names []string) error {
	todo, failed := make(chan string), make([]error, 4)
	var work sync.WaitGroup
	for i := range failed {
		work.Go(func() {
			for name := range todo {
				if err := c.Gateway(ctx, "wake", name); err != nil {
					failed[i] = fmt.Errorf("wake %s: %w", name, err)
				}
			}
		})
	}
	for _, name := range names {
		todo <- name
	}
	close(todo)
	work.Wait()
	for _, err := range failed {
		if err != nil {
			return err
		}
	}
	return nil
}

// memberPIDs are the processes of all members.
func (e *env) memberPIDs() (pids []int, err error) {
	files, err := filepath.Glob(filepath.Join(e.stack.Run, "members", "bundles", "m-*", "pid"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
		if err != nil {
			return nil, err
		}
		if _, err := readProcess(pid); err == nil { // else it has ended
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// watchIdle reads the processor time of members, and of service and host, for a while.
func (e *env) watchIdle(ctx context.Context, pids []int, s *samples) error {
	read := func() (members, own float64, err error) {
		for _, pid := range pids {
			p, err := readProcess(pid)
			if err != nil {
				return 0, 0, fmt.Errorf("a member ended while it was idle: %w", err)
			}
			members += float64(p.own) / ticksPerSecond
		}
		p, err := readProcess(e.sluice)
		return members, float64(p.own) / ticksPerSecond, err
	}
	members, own, err := read()
	if err != nil {
		return err
	}
	begun := time.Now()
	select {
	case <-time.After(idleFor):
	case <-ctx.Done():
		return ctx.Err()
	}
	membersNow, ownNow, err := read()
	took := time.Since(begun).Seconds()
	s.add("members' CPU", "% of a core", (membersNow-members)/took*100)
	s.add("service's and host's CPU", "% of a core", (ownNow-own)/took*100)
	return err
}

// availableMB is what programs can still take, by the kernel's own account.
func availableMB() float64 {
	kb, err := strconv.ParseFloat(strings.TrimSuffix(fileField("/proc/meminfo", "MemAvailable", ":"), " kB"), 64)
	if err != nil {
		return 0
	}
	return kb * 1.024 / 1e3
}

func idleRows(want int, s *samples) []row {
	n := s.of("running")[0]
	one := func(figure, series string, per float64, unit string) row {
		return row{Figure: "idle: " + figure, This: quantity{Value: median(s.of(series)) / per, Unit: unit}, Runs: len(s.of(series))}
	}
	return []row{
		row{Figure: "idle: members running", This: quantity{Value: n}, Runs: 1}.goal(fmt.Sprintf("≥ %d", want), n >= float64(want)),
		one("waking them, four at a time, each", "waking all", n, "ms"),
		one("the machine's memory, per member", "machine's memory", n, "MB"),
		one("a member's resident memory, shared pages included", "resident", 1, "MB"),
		one("CPU per member", "members' CPU", n, "% of a core"),
		one("CPU of all members", "members' CPU", 1, "% of a core"),
		one("CPU of service and host", "service's and host's CPU", 1, "% of a core"),
	}
}
