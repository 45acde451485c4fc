package apt

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseTargets(t *testing.T) {
	const (
		debian   = "bookworm|main|Debian|http://one.example/debian/"
		updates  = "bookworm-updates|main|Debian|http://one.example/debian/"
		security = "bookworm-security|main|Debian|http://two.example/security/"
	)
	both := Mirrors{Main: "http://one.example/debian/", Security: "http://two.example/security/"}
	for name, c := range map[string]struct {
		lines []string
		want  Mirrors
	}{
		"usual":                   {[]string{security, updates, debian}, both},
		"before any update":       {[]string{"bookworm|main||http://one.example/debian/"}, Mirrors{Main: both.Main}},
		"another component first": {[]string{"bookworm|contrib|Debian|http://x.example/", debian}, Mirrors{Main: both.Main}},
		"a vendor with our suite": {[]string{"bookworm|stable|Docker|http://x.example/", debian}, Mirrors{Main: both.Main}},
		"a vendor with our names": {[]string{"bookworm|main|Vendor|http://x.example/", debian}, Mirrors{Main: both.Main}},
		"several mirrors":         {[]string{debian, "bookworm|main|Debian|http://x.example/"}, Mirrors{Main: both.Main}},
		"by alias":                {[]string{"stable|main|Debian|http://s.example/", "stable-security|main|Debian|http://t.example/"}, Mirrors{"http://s.example/", "http://t.example/"}},
		"codename before alias":   {[]string{"testing|main|Debian|http://t.example/", debian}, Mirrors{Main: both.Main}},
		"noise":                   {[]string{"", "a|b", "bookworm|main|Debian|", debian}, Mirrors{Main: both.Main}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseTargets(strings.Join(c.lines, "\n"), "bookworm")
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
	for _, none := range []string{"", "noble|main|Ubuntu|http://u.example/", "bookworm|main|Vendor|http://x.example/"} {
		_, err := ParseTargets(none, "noble")
		require.ErrorContains(t, err, "-mirror", "%q", none)
	}
}

func TestSources(t *testing.T) {
	require.Equal(t, `deb [signed-by=/k.gpg] http://m/ trixie main
deb [signed-by=/k.gpg] http://m/ trixie-updates main
deb [signed-by=/k.gpg] http://s/ trixie-security main
`, Mirrors{Main: "http://m/", Security: "http://s/"}.Sources("trixie", "/k.gpg"))
	require.NotContains(t, Mirrors{Main: "http://m/"}.Sources("trixie", "/k.gpg"), "security")
}

func TestInheritedOptions(t *testing.T) {
	require.Equal(t, []string{
		`Acquire::Check-Valid-Until "false"`,
		`Acquire::http::Proxy "http://p.example:3128"`,
		`Acquire::http::Proxy::m.example "DIRECT"`,
	}, InheritedOptions(`APT "";
APT::Architecture "amd64";
Acquire::Check-Valid-Until "false";
Acquire::http::Proxy "http://p.example:3128";
Acquire::http::Proxy::m.example "DIRECT";
Acquire::Languages "none";
Acquire::Retries "";
DPkg::Post-Invoke:: "rm -f /x";
`))
}
