// Package load writes to PostgreSQL without pause, notices every hiccup, and at the end proves that nothing that was
// acknowledged is missing. It knows nothing of Theseus: the same client measures any PostgreSQL, through a gateway, a
// proxy, or a list of hosts.
//
// Each of N writers inserts rows that exist once, (run, writer, seq), one statement one transaction, and reconnects when
// its connection is lost or leads to a server that does not take writes. Every operation ends as one of:
//
//   - acked: the server said COMMIT without reservation. The row must be there, whatever happens.
//   - failed: the server, or the lack of one, made clear that nothing was written.
//   - unknown: the connection or the time ran out with the commit under way, or the server warned that it stopped
//     waiting for its standbys. The row may be there or not, now or never; neither is a fault.
//
// A stall is the time between two acknowledgements: of all writers together (the service was down) and of each one (this
// client was waiting). The time from the last acknowledgement to the end of the run counts too.
package load
