package cli

import (
	"bytes"
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
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Create or update resources from files: all or none",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return errs.New(errs.Invalid, "apply needs a file").WithHint("sluice apply -f FILE, a folder, or - for standard input")
			}
			return a.apply(cmd, files, dryRun)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "file", "f", nil, "file, folder of *.yaml files, or - for standard input; may be repeated")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change, change nothing")
	return cmd
}

func (a *app) apply(cmd *cobra.Command, files []string, dryRun bool) error {
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
	results, err := c.Apply(cmd.Context(), docs, dryRun)
	if err != nil {
		return placed(loaded.Documents, err)
	}
	suffix := ""
	if dryRun {
		suffix = " (dry run)"
	}
	for _, r := range results {
		fmt.Fprintf(a.Out, "%s/%s %s%s\n", r.Kind, r.Name, r.Change, suffix)
	}
	return nil
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
