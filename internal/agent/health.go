package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// alive is how long the supervisor may be silent, beyond a start it waits for, before the agent counts as hung.
const alive = quickLimit + 10*time.Second

// serveHealth serves /livez, /readyz and /metrics.
func (a *Agent) serveHealth(ctx context.Context) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(&collector{agent: a})
	mux := http.NewServeMux()
	mux.HandleFunc("/livez", a.livez)
	mux.HandleFunc("/readyz", a.readyz)
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	listener, err := net.Listen("tcp", net.JoinHostPort(a.conf.Listen, strconv.Itoa(a.conf.HealthPort)))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 2 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() {
		if err := server.Serve(listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
			a.log.Error("health endpoint ended", "error", err)
		}
	}()
	return nil
}

func (a *Agent) livez(w http.ResponseWriter, _ *http.Request) {
	if since := a.now().Sub(time.UnixMilli(a.loop.Load())); since > a.conf.StartTimeout+alive {
		http.Error(w, fmt.Sprintf("the supervisor has been silent for %v", since), http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

func (a *Agent) readyz(w http.ResponseWriter, _ *http.Request) {
	if why := notReady(a.status()); why != "" {
		http.Error(w, why, http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

// notReady says why an instance should get no clients, "" if it may.
func notReady(st *agentpb.Status) string {
	connect := st.GetConnectProbe()
	switch {
	case st.GetRole() != agentpb.Role_PRIMARY && st.GetRole() != agentpb.Role_STANDBY:
		return "role " + st.GetRole().String()
	case st.GetRole() == agentpb.Role_PRIMARY && !st.GetEstablished():
		return "not established"
	case st.GetRole() == agentpb.Role_STANDBY && !st.GetReceiver().GetStreaming():
		return "not streaming"
	case connect.GetFailures() > 0:
		return "no sessions: " + connect.GetError()
	case connect.GetPendingSinceUnixMs() > 0 && st.GetAtUnixMs()-connect.GetPendingSinceUnixMs() > connectSlow.Milliseconds():
		return "a new session hangs"
	}
	return ""
}
