package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestExcerpt(t *testing.T) {
	short := []string{"Instance a", "Timeline", "one"}
	require.Equal(t, short, excerpt(short))
	long := []string{"Instance a", "", "Timeline"}
	for range 100 {
		long = append(long, "event")
	}
	long = append(long, "the last")
	got := excerpt(long)
	require.Equal(t, []string{"Instance a", "", "Timeline", "  …"}, got[:4])
	require.Len(t, got, 29)
	require.Equal(t, "the last", got[28])
}
