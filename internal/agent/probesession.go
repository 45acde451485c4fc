package agent

import (
	"context"

	"theseus.dev/theseus/internal/postgres"
)

// probeSession commits again and again in one session.
type probeSession struct {
	agent   *Agent
	durable string
	session *postgres.ProbeSession
}

// write commits once. It has no time limit of its own: a commit that waits is exactly what is to be seen. It ends with the
// session when PostgreSQL stops.
func (p *probeSession) write(ctx context.Context) (err error) {
	defer func() {
		if err != nil && p.session != nil {
			p.session.Close()
			p.session = nil
		}
	}()
	if p.session == nil {
		if p.session, err = p.agent.pg.NewProbeSession(ctx, p.durable); err != nil {
			return err
		}
	}
	return p.session.Commit(ctx)
}
