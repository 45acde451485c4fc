package agent

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"theseus.dev/theseus/internal/agentapi"
)

// rotateEvery is how often the TLS files are looked at for PostgreSQL. The agent's own connections look at each handshake.
const rotateEvery = 5 * time.Second

// watchTLS gives PostgreSQL the new files after a rotation.
func (a *Agent) watchTLS(ctx context.Context) {
	ticker := a.clock.NewTicker(rotateEvery)
	defer ticker.Stop()
	installed := a.tlsStamp()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
		now := a.tlsStamp()
		if now == installed {
			continue
		}
		if err := a.pg.InstallTLS(a.conf.TLSDir); err != nil {
			a.log.Error("rotated certificate not installed", "error", err)
			continue
		}
		installed = now
		a.log.Info("certificate rotated")
	}
}

func (a *Agent) tlsStamp() (stamp [3]time.Time) {
	for i, name := range []string{agentapi.CAFile, agentapi.CertFile, agentapi.KeyFile} {
		if info, err := os.Stat(filepath.Join(a.conf.TLSDir, name)); err == nil {
			stamp[i] = info.ModTime()
		}
	}
	return stamp
}
