package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

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
	how.hosts.add(cmd)
	return cmd
}

type applyFlags struct {
	dryRun bool
	hosts  waitFlags
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
	a.tell(hosts, how.hosts)
	return nil
}

func (a *app) send(ctx context.Context, c *client.Client, docs []json.RawMessage, how applyFlags) ([]client.Applied, []client.HostActing, error) {
	if how.dryRun || !how.hosts.wanted() {
		results, err := c.Apply(ctx, docs, how.dryRun)
		return results, nil, err
	}
	defer a.waiting(how.hosts)()
	return c.ApplyAndWait(ctx, docs, how.hosts.wait)
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
