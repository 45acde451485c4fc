// Package apt learns from this machine's own apt where Debian packages come from, so
// that no mirror is ever written down in the repository.
package apt

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Keyring is where the package debian-archive-keyring puts the keys of all releases.
const Keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// TargetFormat is the --format for `apt-get indextargets` that ParseTargets reads.
const TargetFormat = "$(RELEASE)|$(COMPONENT)|$(ORIGIN)|$(REPO_URI)"

// Mirrors are the base addresses of a Debian archive.
type Mirrors struct {
	// Main serves releases and their updates.
	Main string
	// Security serves security updates; empty when the machine uses none.
	Security string
}

// aliases are names under which sources may call a release instead of its codename.
var aliases = []string{"stable", "oldstable", "oldoldstable", "testing"}

// ParseTargets finds the Debian mirrors among the lines of `apt-get indextargets`,
// on a machine that runs the release called codename. Repositories of other vendors
// are passed over: they either say so in their origin or have no component "main".
func ParseTargets(output, codename string) (Mirrors, error) {
	byRelease := map[string]string{}
	for _, line := range strings.Split(output, "\n") {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 4 || f[1] != "main" || f[3] == "" {
			continue
		}
		// The origin is empty until the first `apt-get update`.
		if f[2] != "" && f[2] != "Debian" {
			continue
		}
		if _, seen := byRelease[f[0]]; !seen {
			byRelease[f[0]] = f[3]
		}
	}
	for _, name := range append([]string{codename}, aliases...) {
		if main, ok := byRelease[name]; ok && name != "" {
			return Mirrors{Main: main, Security: byRelease[name+"-security"]}, nil
		}
	}
	return Mirrors{}, errors.New("apt on this machine has no source of Debian packages; name one with -mirror")
}

// Sources is a sources.list for suite over m, verified with keyring.
func (m Mirrors) Sources(suite, keyring string) string {
	var b strings.Builder
	line := func(uri, s string) {
		fmt.Fprintf(&b, "deb [signed-by=%s] %s %s main\n", keyring, uri, s)
	}
	line(m.Main, suite)
	line(m.Main, suite+"-updates")
	if m.Security != "" {
		line(m.Security, suite+"-security")
	}
	return b.String()
}

// inherited are the options of the machine's apt that a mirror may depend on: proxies,
// retries, and whether dates are checked (a snapshot mirror fails such a check).
var inherited = regexp.MustCompile(`^Acquire::(Check-Valid-Until|Check-Date|Retries|https?::(Proxy|Timeout)[^ ]*) ".+";$`)

// InheritedOptions picks from the output of `apt-config dump` the options that a build
// against the same mirrors needs too.
func InheritedOptions(dump string) []string {
	var out []string
	for _, line := range strings.Split(dump, "\n") {
		if line = strings.TrimSpace(line); inherited.MatchString(line) {
			out = append(out, strings.TrimSuffix(line, ";"))
		}
	}
	return out
}
