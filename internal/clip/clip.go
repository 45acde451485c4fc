// Package clip shortens text to a limit without breaking a character, and shows that it did.
package clip

import "unicode/utf8"

const ellipsis = "…"

// Bytes returns s, or as much of its beginning as fits into n bytes together with an ellipsis. It is for fields of the API,
// whose limits are bytes or more. With n below the ellipsis' three bytes nothing is left.
func Bytes(s string, n int) string {
	if len(s) <= n {
		return s
	}
	n -= len(ellipsis)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	if n < 0 {
		return ""
	}
	return s[:n] + ellipsis
}

// Columns returns s, or as much of its beginning as fits into n characters together with an ellipsis. It is for terminals.
func Columns(s string, n int) string {
	r := []rune(s)
	switch {
	case len(r) <= n:
		return s
	case n <= 0:
		return ""
	}
	return string(r[:n-1]) + ellipsis
}
