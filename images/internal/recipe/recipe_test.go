package recipe

import (
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestSuite(t *testing.T) {
	table := "# comment\n15 bookworm\n\n17 trixie # not a comment here\n"
	got, err := Suite(strings.NewReader(table), "15")
	require.NoError(t, err)
	require.Equal(t, "bookworm", got)

	_, err = Suite(strings.NewReader(table), "17")
	require.ErrorContains(t, err, "want \"major suite\"")
	_, err = Suite(strings.NewReader("15 bookworm\n17 trixie\n"), "9.6")
	require.ErrorContains(t, err, "15, 17", "an unknown major must name the known ones")
}

func TestPackages(t *testing.T) {
	got, err := Packages(strings.NewReader("# x\npostgresql-${PG_MAJOR}\n\n ca-certificates \n"), "17")
	require.NoError(t, err)
	require.Equal(t, []string{"postgresql-17", "ca-certificates"}, got)

	for _, bad := range []string{"", "# nothing\n", "a b\n", "--help\n", "x;rm\n", "postgresql-${PG}\n", "Upper\n"} {
		_, err := Packages(strings.NewReader(bad), "17")
		require.Error(t, err, "%q", bad)
	}
}

func TestSlimDropsWhatMatchesAndAllBelowIt(t *testing.T) {
	s, err := ParseSlim(strings.NewReader("/etc/apt\n/usr/share/doc/*/changelog*\n/dev/*\n/usr/lib/*/libLLVM*\n"))
	require.NoError(t, err)
	for name, want := range map[string]bool{
		"etc/apt":                                true,
		"etc/apt/sources.list.d/debian.sources":  true,
		"etc/apt2":                               false,
		"etc":                                    false,
		"dev":                                    false,
		"dev/null":                               true,
		"dev/shm/x":                              true,
		"usr/share/doc/bash/copyright":           false,
		"usr/share/doc/bash/changelog.gz":        true,
		"usr/share/doc/changelog":                false,
		"usr/lib/x86_64-linux-gnu/libLLVM.so.19": true,
		"usr/lib/libLLVM.so.19":                  false,
		".":                                      false,
	} {
		require.Equal(t, want, s.Drops(name), name)
	}
}

func TestSlimRefusesWhatCouldEatTooMuch(t *testing.T) {
	for _, bad := range []string{"/", "relative", "/a/../b", "/a/", "//a", "/["} {
		_, err := ParseSlim(strings.NewReader(bad))
		require.Error(t, err, "%q", bad)
	}
}

func TestSlimAgreesWithMatchingEveryAncestor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.SampledFrom([]string{"a", "b", "ab"})
		name := strings.Join(rapid.SliceOfN(part, 1, 5).Draw(t, "name"), "/")
		glob := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "*", "a*", "b"}), 1, 5).Draw(t, "glob"), "/")
		want := false
		for p := name; p != "."; p = path.Dir(p) {
			match, err := path.Match(glob, p)
			require.NoError(t, err)
			want = want || match
		}
		require.Equal(t, want, Slim{glob}.Drops(name), "%s %s", glob, name)
	})
}

func TestEveryIngredientChangesTheKey(t *testing.T) {
	base := Recipe{Major: "17", Suite: "trixie", Arch: "amd64", Packages: []string{"a", "b"}, Slim: Slim{"c"}, Epoch: time.Unix(5, 0)}
	require.Equal(t, base.Key(), base.Key())
	keys := map[string]bool{base.Key(): true}
	for name, change := range map[string]func(*Recipe){
		"major":    func(r *Recipe) { r.Major = "15" },
		"suite":    func(r *Recipe) { r.Suite = "bookworm" },
		"arch":     func(r *Recipe) { r.Arch = "arm64" },
		"packages": func(r *Recipe) { r.Packages = []string{"a b"} },
		"slim":     func(r *Recipe) { r.Slim = nil },
		"moved":    func(r *Recipe) { r.Packages, r.Slim = []string{"a"}, Slim{"b", "c"} },
		"epoch":    func(r *Recipe) { r.Epoch = time.Unix(6, 0) },
	} {
		r := base
		change(&r)
		require.False(t, keys[r.Key()], name)
		keys[r.Key()] = true
	}
}

// The lists in the repository are read by machines and by the Dockerfile's shell.
func TestTheListsInTheRepositoryAreSound(t *testing.T) {
	open := func(name string) *os.File {
		f, err := os.Open("../../" + name)
		require.NoError(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	for _, major := range []string{"15", "17"} {
		_, err := Suite(open("suites.txt"), major)
		require.NoError(t, err)
		packages, err := Packages(open("packages-operand.txt"), major)
		require.NoError(t, err)
		require.Contains(t, packages, "postgresql-"+major)
	}
	s, err := ParseSlim(open("slim.txt"))
	require.NoError(t, err)
	for _, kept := range []string{
		"usr/lib/postgresql/17/bin/postgres", "usr/lib/postgresql/17/lib/pg_stat_statements.so", "usr/sbin/pgbouncer", "usr/bin/pgbackrest",
		"etc/ssl/certs/ca-certificates.crt", "usr/share/zoneinfo/Europe/Berlin", "usr/lib/locale/C.utf8/LC_CTYPE",
		"usr/share/postgresql/17/postgres.bki", "etc/passwd", "var/lib/dpkg/status", "tmp", "usr/share/doc/libc6/copyright",
	} {
		require.False(t, s.Drops(kept), kept)
	}
	for _, gone := range []string{
		"etc/apt/sources.list", "var/lib/apt/lists/x", "etc/ssl/private/ssl-cert-snakeoil.key", "var/lib/postgresql/17/main/PG_VERSION",
		"usr/lib/x86_64-linux-gnu/libLLVM.so.19.1", "var/log/apt/history.log",
	} {
		require.True(t, s.Drops(gone), gone)
	}
}
