package load

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestProgressIsReadAsItIsWritten(t *testing.T) {
	for _, p := range []Progress{{}, {12.5, 1234, 5, 67, 0.5, 1234567.9}, {100000.1, 9999999, 123456, 0, 99999.9, 99999.9}} {
		got, ok := ParseProgress(p.String())
		require.True(t, ok, p.String())
		require.Equal(t, p, got)
	}
	for _, line := range []string{"", "theseus-load: no route to host", "12.5s nonsense", "  1.0s  5 writes/s"} {
		_, ok := ParseProgress(line)
		require.False(t, ok, line)
	}
}
