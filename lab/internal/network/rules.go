package network

import (
	"fmt"
	"strings"

	"theseus.dev/theseus/lab/internal/state"
)

// Rules renders the router's packet filter for a set of cuts, as input for nft.
// Each link of the router is named after the machine at its other end, so a cut
// between two machines is a pair of interface names.
//
// Packets are dropped without a word, as by a broken switch: an answer such as
// "host unreachable" would let clients fail faster than a real partition does.
func Rules(cuts []state.Cut) string {
	var b strings.Builder
	b.WriteString("table ip lab\ndelete table ip lab\n")
	b.WriteString("table ip lab {\n\tchain forward {\n\t\ttype filter hook forward priority 0; policy accept;\n")
	for _, c := range cuts {
		b.WriteString("\t\t")
		if c.From != state.Everyone {
			fmt.Fprintf(&b, "iifname %q ", c.From)
		}
		if c.To != state.Everyone {
			fmt.Fprintf(&b, "oifname %q ", c.To)
		}
		b.WriteString("drop\n")
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}
