package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// nameArguments makes every command that gets the wrong number of arguments say what it got
// and what it takes.
func nameArguments(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if check(cmd, args) == nil {
				return nil
			}
			if cmd.HasAvailableSubCommands() && len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return errs.New(errs.Invalid, "%s was given %s", cmd.CommandPath(), listed(args)).WithHint("usage: %s", cmd.UseLine())
		}
	}
	for _, sub := range cmd.Commands() {
		nameArguments(sub)
	}
}

func unknownCommand(cmd *cobra.Command, word string) error {
	return errs.New(errs.Invalid, "unknown command %q for %q", word, cmd.CommandPath()).WithHint("%s --help", cmd.CommandPath())
}

// listed writes arguments: `2 arguments: "a", "b"`.
func listed(args []string) string {
	const most = 4
	if len(args) == 0 {
		return "no argument"
	}
	quoted := make([]string, 0, most+1)
	for i, a := range args {
		if i == most {
			quoted = append(quoted, "…")
			break
		}
		quoted = append(quoted, fmt.Sprintf("%q", cut(a, 40)))
	}
	return fmt.Sprintf("%d %s: %s", len(args), plural(int64(len(args)), "argument"), strings.Join(quoted, ", "))
}

// values says what a flag takes, by pflag's name of its type.
var values = map[string]string{
	"int": "a whole number", "int64": "a whole number", "bool": "true or false", "duration": "a duration such as 30s, 4m or 1h30m",
}

// flagError says which flag is wrong, and what it takes.
func flagError(cmd *cobra.Command, err error) error {
	e := errs.New(errs.Invalid, "%w", err).WithHint("%s --help", cmd.CommandPath())
	var bad *pflag.InvalidValueError
	if errors.As(err, &bad) {
		if takes := values[bad.GetFlag().Value.Type()]; takes != "" {
			e.Message = fmt.Sprintf("--%s %q is not %s", bad.GetFlag().Name, bad.GetValue(), takes)
		}
	}
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && cmd.Name() == "query" {
		e.Hint += "; in front of SQL that begins with a dash, write --"
	}
	return e
}
