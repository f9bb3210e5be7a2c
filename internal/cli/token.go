package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Replace the administrator's token"}
	cmd.AddCommand(&cobra.Command{
		Use: "renew", Short: "Make a new administrator's token, shown this once; the one before it is refused from now on", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			var out struct{ Token string }
			if err := c.Post(cmd.Context(), "/v1/token", struct{}{}, &out); err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.Out, out.Token)
			return err
		},
	})
	return requireSub(cmd)
}
