package network

import (
	"testing"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/lab/internal/state"
)

func TestRules(t *testing.T) {
	require.Equal(t, `table ip lab
delete table ip lab
table ip lab {
	chain forward {
		type filter hook forward priority 0; policy accept;
		iifname "node-a" drop
		oifname "node-a" drop
		iifname "node-b" oifname "node-c" drop
	}
}
`, Rules([]state.Cut{
		{From: "node-a", To: state.Everyone},
		{From: state.Everyone, To: "node-a"},
		{From: "node-b", To: "node-c"},
	}))
}
