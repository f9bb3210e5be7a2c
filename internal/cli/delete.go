package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/internal/config"
	"github.com/sluice-gateway/sluice/internal/errs"
)

type deleteFlags struct {
	files         []string
	ignoreMissing bool
	force         bool
	reason        string
	hosts         waitFlags
}

func (a *app) deleteCommand() *cobra.Command {
	var f deleteFlags
	cmd := &cobra.Command{
		Use:   "delete KIND NAME [KIND NAME]... | delete -f FILE|DIR|-",
		Short: "Delete resources, all or none; with --force release a lease, a link or a host that is lost",
		Long: "Delete resources, all or none. What refers to each other, as a virtual network and its NAT gateway do, goes\n" +
			"when it is named together: as pairs of KIND NAME, or by the files that it was applied from.",
		ValidArgsFunction: a.completeKindAndName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.delete(cmd.Context(), f, args)
		},
	}
	fl := cmd.Flags()
	fl.StringArrayVarP(&f.files, "file", "f", nil, "delete what is declared in a file, a folder of *.yaml files, or - for standard input; may be repeated")
	fl.BoolVar(&f.ignoreMissing, "ignore-not-found", false, "delete what there is, even if some of it does not exist")
	fl.BoolVar(&f.force, "force", false, "don't wait for the confirmation of hosts: a gateway goes at once, its addresses stay leased; leases, links and hosts, named alone, go on your word alone")
	fl.StringVar(&f.reason, "reason", "", "why, for the audit log (\"sluice get audits\")")
	f.hosts.add(cmd)
	return cmd
}

func (a *app) delete(ctx context.Context, f deleteFlags, args []string) error {
	objects, err := a.named(f, args)
	if err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	done, hosts, err := a.remove(ctx, c, f, objects)
	if err != nil {
		return err
	}
	for _, r := range done {
		fmt.Fprintf(a.Out, "%s/%s %s\n", r.Kind, r.Name, r.Change)
	}
	a.tell(hosts, f.hosts)
	return nil
}

// remove deletes one object of whatever kind, or several resources.
func (a *app) remove(ctx context.Context, c *client.Client, f deleteFlags, objects []client.Object) (done []client.Applied, hosts []client.HostActing, err error) {
	most := time.Duration(0)
	if f.hosts.wanted() {
		most = f.hosts.wait
		defer a.waiting(f.hosts)()
	}
	if len(objects) != 1 || f.ignoreMissing {
		set := client.DeleteSet{Objects: objects, IgnoreMissing: f.ignoreMissing, Force: f.force, Reason: f.reason}
		return c.DeleteAllAndWait(ctx, set, most)
	}
	kind, err := kindOf(objects[0].Kind)
	if err != nil {
		return nil, nil, err
	}
	hosts, err = c.DeleteAndWait(ctx, kind.plural, objects[0].Name, f.force, f.reason, most)
	return []client.Applied{{Kind: kind.name, Name: objects[0].Name, Change: "deleted"}}, hosts, lists(err, kind)
}

// named lists what the arguments and the files name.
func (a *app) named(f deleteFlags, args []string) ([]client.Object, error) {
	switch {
	case len(f.files) > 0 && len(args) > 0:
		return nil, errs.New(errs.Invalid, "either files or KIND NAME, not both")
	case len(f.files) > 0:
		return a.declared(f.files)
	case len(args) == 0 || len(args)%2 != 0:
		return nil, errs.New(errs.Invalid, "delete needs pairs of KIND NAME, and was given %s", listed(args)).
			WithHint("sluice delete virtualnetwork corp natgateway egress; or -f FILE")
	}
	var out []client.Object
	for i := 0; i < len(args); i += 2 {
		kind, err := kindOf(args[i])
		if err != nil {
			return nil, err
		}
		out = append(out, client.Object{Kind: kind.name, Name: args[i+1]})
	}
	return out, nil
}

// declared lists what files declare. Secrets in them stay unread.
func (a *app) declared(files []string) ([]client.Object, error) {
	loaded, err := config.Load(config.Options{Stdin: a.In, NamesOnly: true}, files...)
	if err != nil {
		return nil, err
	}
	var out []client.Object
	for _, d := range loaded.Documents {
		out = append(out, client.Object{Kind: string(d.Kind), Name: d.Name})
	}
	if len(out) == 0 {
		return nil, errs.New(errs.Invalid, "the files hold no resource")
	}
	return out, nil
}
