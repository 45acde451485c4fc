package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// health answers the kubelet. It outlives managers: without an API server there is none for as long as the outage lasts,
// and a process that waits for its end must not be killed for waiting. Its restarts would add up to a back-off of minutes.
type health struct{ ready atomic.Bool }

// serve listens until ctx ends; "0" for address turns it off.
func (h *health) serve(ctx context.Context, address string) (stop func(), err error) {
	if address == "0" {
		return func() {}, nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--health-address: %w", err)
	}
	server := &http.Server{Handler: h.handler(), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(listener) }() // it ends with an error, and only when it is closed
	return func() { _ = server.Close() }, nil
}

func (h *health) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !h.ready.Load() {
			http.Error(w, "the controllers do not run: is the API server within reach?", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok"))
	})
	return mux
}

// follow has the readiness follow a manager: it is ready once its caches are filled.
func (h *health) follow(mgr manager.Manager) error {
	return mgr.Add(whileRunning(func(ctx context.Context) error {
		h.ready.Store(true)
		<-ctx.Done()
		h.ready.Store(false)
		return nil
	}))
}

// whileRunning runs on every replica, not only on the leader.
type whileRunning func(context.Context) error

// Start implements manager.Runnable.
func (f whileRunning) Start(ctx context.Context) error { return f(ctx) }

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (whileRunning) NeedLeaderElection() bool { return false }
