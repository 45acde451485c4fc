// Package recipe says what goes into an operand image: which Debian release, which
// packages, which files are left out. It is pure: text files in, a value out.
package recipe

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strings"
	"time"
)

// Version is part of every cache key. Raise it when the way a root file system is
// made changes without the list files changing.
const Version = "1"

// majorVariable stands for the PostgreSQL major in the package list.
const majorVariable = "${PG_MAJOR}"

// packageName is Debian's own rule for package names (policy §5.6.1).
var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)

// Recipe is everything that decides the content of an operand's root file system,
// the versions the mirror offers on the day aside.
type Recipe struct {
	// Major is the PostgreSQL major version, such as "17".
	Major string
	// Suite is the Debian release the packages come from, such as "trixie".
	Suite string
	// Arch is Debian's and Go's name of the architecture, such as "amd64".
	Arch string
	// Packages are installed, with their dependencies but not what they recommend.
	Packages []string
	// Slim says what is left out.
	Slim Slim
	// Epoch is the newest timestamp any file in the image may carry.
	Epoch time.Time
}

// Key names the cache entry of r: equal recipes have equal keys.
func (r Recipe) Key() string {
	h := sha256.New()
	for _, part := range []string{Version, r.Major, r.Suite, r.Arch, r.Epoch.UTC().Format(time.RFC3339)} {
		fmt.Fprintf(h, "%q\n", part)
	}
	fmt.Fprintf(h, "%q\n%q\n", r.Packages, []string(r.Slim))
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// Suite finds the Debian release for a PostgreSQL major in the table (lines of
// "major suite"). The error of an unknown major lists the known ones.
func Suite(table io.Reader, major string) (string, error) {
	rows, err := lines(table)
	if err != nil {
		return "", fmt.Errorf("reading the table of suites: %w", err)
	}
	var known []string
	for _, row := range rows {
		f := strings.Fields(row)
		if len(f) != 2 {
			return "", fmt.Errorf("table of suites: want \"major suite\", got %q", row)
		}
		if f[0] == major {
			return f[1], nil
		}
		known = append(known, f[0])
	}
	return "", fmt.Errorf("no Debian release is known for PostgreSQL %q; known majors: %s", major, strings.Join(known, ", "))
}

// Packages reads a package list and fills in the major. A line that is not a Debian
// package name is an error: the names end up on a command line.
func Packages(list io.Reader, major string) ([]string, error) {
	rows, err := lines(list)
	if err != nil {
		return nil, fmt.Errorf("reading the package list: %w", err)
	}
	var out []string
	for _, row := range rows {
		name := strings.ReplaceAll(row, majorVariable, major)
		if !packageName.MatchString(name) {
			return nil, fmt.Errorf("package list: %q is not a package name", row)
		}
		out = append(out, name)
	}
	if len(out) == 0 {
		return nil, errors.New("the package list is empty")
	}
	return out, nil
}

// Slim is a list of shell globs over absolute paths, stored without the leading
// slash. What matches is left out together with everything under it.
type Slim []string

// ParseSlim reads a list of globs. Every line must be an absolute path, must not
// name the root itself, and must be a well-formed glob.
func ParseSlim(list io.Reader) (Slim, error) {
	rows, err := lines(list)
	if err != nil {
		return nil, fmt.Errorf("reading the list of what to leave out: %w", err)
	}
	var out Slim
	for _, row := range rows {
		if !path.IsAbs(row) || path.Clean(row) != row || row == "/" {
			return nil, fmt.Errorf("list of what to leave out: %q is not a clean absolute path", row)
		}
		if _, err := path.Match(row, "/"); err != nil {
			return nil, fmt.Errorf("list of what to leave out: %q: %w", row, err)
		}
		out = append(out, strings.TrimPrefix(row, "/"))
	}
	return out, nil
}

// Drops says whether name (relative to the root, clean, no leading slash) is left out.
func (s Slim) Drops(name string) bool {
	for _, glob := range s {
		depth := strings.Count(glob, "/") + 1
		head, ok := firstElements(name, depth)
		if !ok {
			continue
		}
		// ParseSlim has refused malformed globs, so an error cannot happen here.
		if match, _ := path.Match(glob, head); match {
			return true
		}
	}
	return false
}

// firstElements returns the first n path elements of name, or false if it has fewer.
func firstElements(name string, n int) (string, bool) {
	for i := 0; i < len(name); i++ {
		if name[i] != '/' {
			continue
		}
		if n--; n == 0 {
			return name[:i], true
		}
	}
	return name, n == 1
}

// lines returns the lines of r without comments and blank ones.
func lines(r io.Reader) ([]string, error) {
	var out []string
	s := bufio.NewScanner(r)
	for s.Scan() {
		if line := strings.TrimSpace(s.Text()); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return out, s.Err()
}
