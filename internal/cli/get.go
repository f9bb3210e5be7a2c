package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// outputs of get.
var outputs = []string{"table", "json", "yaml"}

func (a *app) getCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:               "get KIND [NAME]",
		Short:             "Show resources, members, hosts, leases, links, queries or the audit log",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: a.completeKindAndName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.get(cmd, args, output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", strings.Join(outputs, ", "))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) get(cmd *cobra.Command, args []string, output string) error {
	kind, err := kindOf(args[0])
	if err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	var items []json.RawMessage
	if len(args) == 2 {
		item, err := c.Get(cmd.Context(), kind.plural, args[1])
		if err != nil {
			return lists(err, kind)
		}
		items = []json.RawMessage{item}
	} else if items, err = c.List(cmd.Context(), kind.plural); err != nil {
		return err
	}
	return a.print(kind, items, output, len(args) == 2)
}

// lists adds to "does not exist" what lists those that do.
func lists(err error, kind kind) error {
	var e *errs.Error
	if errors.As(err, &e) && e.Class == errs.NotFound && e.Hint == "" {
		e.Hint = fmt.Sprintf("\"sluice get %s\" lists them", kind.plural)
	}
	return err
}

// print shows objects in the form asked for.
func (a *app) print(kind kind, items []json.RawMessage, output string, one bool) error {
	switch output {
	case "json":
		return a.printJSON(items, one)
	case "yaml":
		return a.printYAML(items)
	case "table":
		return kind.table(a.Out, items)
	}
	return errs.New(errs.Invalid, "-o %s is not one of %s", output, strings.Join(outputs, ", "))
}

// printJSON prints one object as it is, several as a list.
func (a *app) printJSON(items []json.RawMessage, one bool) error {
	var doc []byte
	var err error
	if one {
		doc = items[0]
	} else if doc, err = json.Marshal(map[string]any{"items": items}); err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, doc, "", "  "); err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.Out, out.String())
	return err
}

// printYAML prints documents that apply accepts again.
func (a *app) printYAML(items []json.RawMessage) error {
	for i, item := range items {
		if i > 0 {
			fmt.Fprintln(a.Out, "---")
		}
		var node yaml.Node
		if err := yaml.Unmarshal(item, &node); err != nil {
			return err
		}
		blockStyle(&node)
		enc := yaml.NewEncoder(a.Out)
		enc.SetIndent(2)
		if err := enc.Encode(&node); err != nil {
			return err
		}
		if err := enc.Close(); err != nil {
			return err
		}
	}
	return nil
}

// blockStyle turns JSON's braces and quotes into YAML's lines.
func blockStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		blockStyle(c)
	}
}

// completeKindAndName completes KIND, then the names of that kind.
func (a *app) completeKindAndName(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return plurals(), cobra.ShellCompDirectiveNoFileComp
	case 1:
		if kind, err := kindOf(args[0]); err == nil {
			return a.names(cmd, kind.plural), cobra.ShellCompDirectiveNoFileComp
		}
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// names lists the names of a kind, for completion: nothing if the service is away.
func (a *app) names(cmd *cobra.Command, plural string) []string {
	c, err := a.client()
	if err != nil {
		return nil
	}
	defer c.Close()
	items, err := c.List(cmd.Context(), plural)
	if err != nil {
		return nil
	}
	var out []string
	for _, item := range items {
		var o struct{ Name, ID string }
		if json.Unmarshal(item, &o) == nil && o.Name+o.ID != "" {
			out = append(out, o.Name+o.ID)
		}
	}
	return out
}

// completeNames completes names of one kind.
func (a *app) completeNames(plural string) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.names(cmd, plural), cobra.ShellCompDirectiveNoFileComp
	}
}
