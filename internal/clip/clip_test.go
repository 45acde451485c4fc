package clip

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestExamples(t *testing.T) {
	require.Equal(t, "abcdef", Bytes("abcdef", 6))
	require.Equal(t, "ab…", Bytes("abcdef", 5))
	require.Equal(t, "ä…", Bytes("äöü", 5), "no half of a character")
	require.Equal(t, "…", Bytes("abcdef", 3))
	require.Empty(t, Bytes("abcdef", 2))
	require.Equal(t, "äö…", Columns("äöüß", 3))
	require.Equal(t, "äöüß", Columns("äöüß", 4))
	require.Empty(t, Columns("äöüß", 0))
	require.Empty(t, Columns("äöüß", -1))
}

func TestWhatIsLeftFitsAndIsABeginning(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, n := rapid.String().Draw(t, "s"), rapid.IntRange(0, 40).Draw(t, "n")
		for _, got := range []string{Bytes(s, n), Columns(s, n)} {
			require.True(t, utf8.ValidString(got))
			require.True(t, got == s || strings.HasPrefix(s, strings.TrimSuffix(got, ellipsis)))
		}
		require.LessOrEqual(t, len(Bytes(s, n)), n)
		require.LessOrEqual(t, utf8.RuneCountInString(Columns(s, n)), n)
	})
}
