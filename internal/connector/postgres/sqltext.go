package postgres

import "strings"

// firstWord returns a statement's first keyword in lower case, past white space,
// comments and parentheses; "" for an empty statement.
func firstWord(sql string) string {
	s := skipBlank(sql)
	end := 0
	for end < len(s) && (s[end] >= 'a' && s[end] <= 'z' || s[end] >= 'A' && s[end] <= 'Z' || s[end] == '_') {
		end++
	}
	if end == 0 && s != "" {
		return s[:1]
	}
	return strings.ToLower(s[:end])
}

func skipBlank(s string) string {
	for {
		s = strings.TrimLeft(s, " \t\r\n\f\v;(")
		switch {
		case strings.HasPrefix(s, "--"):
			_, s, _ = strings.Cut(s, "\n")
		case strings.HasPrefix(s, "/*"):
			s = skipComment(s)
		default:
			return s
		}
	}
}

// skipComment cuts a block comment, which may hold others, off the front.
func skipComment(s string) string {
	depth := 0
	for i := 0; i+1 < len(s); i++ {
		switch s[i : i+2] {
		case "/*":
			depth++
			i++
		case "*/":
			depth--
			i++
			if depth == 0 {
				return s[i+1:]
			}
		}
	}
	return ""
}

// leavesTraces reports whether a statement may change what no reset brings back: the
// state of random(), or the libraries loaded.
func leavesTraces(sql string) bool {
	return firstWord(sql) == "load" || strings.Contains(strings.ToLower(sql), "setseed")
}

// lingers reports whether a statement is likely to leave what a rollback does not undo,
// so that the session is reset at once. What a function does in secret is undone later.
func lingers(sql string) bool {
	lower := strings.ToLower(sql)
	return strings.Contains(lower, "advisory") || strings.Contains(lower, "prepare")
}
