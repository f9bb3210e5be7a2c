package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/internal/config"
	"github.com/sluice-gateway/sluice/internal/errs"
)

func (a *app) applyCommand() *cobra.Command {
	var files []string
	var how applyFlags
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Create or update resources from files: all or none",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return errs.New(errs.Invalid, "apply needs a file").WithHint("sluice apply -f FILE, a folder, or - for standard input")
			}
			return a.apply(cmd, files, how)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "file", "f", nil, "file, folder of *.yaml files, or - for standard input; may be repeated")
	cmd.Flags().BoolVar(&how.dryRun, "dry-run", false, "say what would change, change nothing")
	cmd.Flags().DurationVar(&how.wait, "wait", 10*time.Second, "for how long to wait until the hosts that run members have acted on it")
	cmd.Flags().BoolVar(&how.noWait, "no-wait", false, "do not wait for hosts")
	cmd.MarkFlagsMutuallyExclusive("wait", "no-wait")
	return cmd
}

type applyFlags struct {
	dryRun bool
	wait   time.Duration
	noWait bool
}

func (a *app) apply(cmd *cobra.Command, files []string, how applyFlags) error {
	loaded, err := config.Load(config.Options{Stdin: a.In}, files...)
	if err != nil {
		return err
	}
	for _, w := range loaded.Warnings {
		fmt.Fprintf(a.Err, "warning: %s\n", w.Error())
		if w.Hint != "" {
			fmt.Fprintf(a.Err, "hint: %s\n", w.Hint)
		}
	}
	if len(loaded.Documents) == 0 {
		return errs.New(errs.Invalid, "the files hold no resource")
	}
	docs := make([]json.RawMessage, len(loaded.Documents))
	for i, d := range loaded.Documents {
		docs[i] = withKind(string(d.Kind), d.JSON)
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	results, hosts, err := a.send(cmd.Context(), c, docs, how)
	if err != nil {
		return placed(loaded.Documents, err)
	}
	suffix := ""
	if how.dryRun {
		suffix = " (dry run)"
	}
	for _, r := range results {
		fmt.Fprintf(a.Out, "%s/%s %s%s\n", r.Kind, r.Name, r.Change, suffix)
	}
	for _, h := range hosts {
		a.tell(h, how.wait)
	}
	return nil
}

// sayWaits is after how long an apply says what it waits for.
const sayWaits = time.Second

func (a *app) send(ctx context.Context, c *client.Client, docs []json.RawMessage, how applyFlags) ([]client.Applied, []client.HostActing, error) {
	if how.dryRun || how.noWait || how.wait <= 0 {
		results, err := c.Apply(ctx, docs, how.dryRun)
		return results, nil, err
	}
	var said sync.WaitGroup
	said.Add(1)
	notice := time.AfterFunc(sayWaits, func() {
		defer said.Done()
		fmt.Fprintf(a.Err, "waiting until the hosts have acted on it, for at most %s (--no-wait does not)\n", how.wait)
	})
	defer func() {
		if !notice.Stop() {
			said.Wait()
		}
	}()
	return c.ApplyAndWait(ctx, docs, how.wait)
}

// tell says what is not well with a host after an apply.
func (a *app) tell(h client.HostActing, waited time.Duration) {
	switch {
	case !h.Connected:
		fmt.Fprintf(a.Err, "warning: host %s is not connected; it acts on this once it is back\n", h.Host)
	case !h.Acted:
		fmt.Fprintf(a.Err, "warning: host %s has not acted on it within %s; until it has, what was before holds there\n", h.Host, waited)
	}
	for _, p := range h.Problems {
		fmt.Fprintf(a.Err, "warning: host %s: %s\n", h.Host, p)
	}
}

// withKind puts the kind in front of a resource's fields.
func withKind(kind string, fields json.RawMessage) json.RawMessage {
	rest := bytes.TrimPrefix(bytes.TrimSpace(fields), []byte("{"))
	head, _ := json.Marshal(kind)
	out := append([]byte(`{"kind":`), head...)
	if !bytes.HasPrefix(bytes.TrimSpace(rest), []byte("}")) {
		out = append(out, ',')
	}
	return append(out, rest...)
}

// placed says in which file and line the service's problems stand.
func placed(docs []config.Document, err error) error {
	var refused *client.ApplyError
	if !errors.As(err, &refused) {
		return err
	}
	var out config.Errors
	for _, p := range refused.Problems {
		out = append(out, config.Place(docs, p))
	}
	return out
}
