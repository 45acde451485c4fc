package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/go-logr/logr"
)

func TestHealth(t *testing.T) {
	h := &health{}
	get := func(path string) int {
		w := httptest.NewRecorder()
		h.handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code
	}
	require.Equal(t, http.StatusOK, get("/healthz"))
	require.Equal(t, http.StatusServiceUnavailable, get("/readyz"))
	h.ready.Store(true)
	require.Equal(t, http.StatusOK, get("/readyz"))
}

// Without an API server the operator lives on, is not ready, and waits.
func TestTheOperatorLivesWithoutAnAPIServer(t *testing.T) {
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, nobody.Close())
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := free.Addr().String()
	require.NoError(t, free.Close())

	ctx, cancel := context.WithCancel(t.Context())
	o := &operatorFlags{healthAddress: address, metricsAddress: "0"}
	ended := make(chan error, 1)
	go func() { ended <- o.keepRunning(ctx, &rest.Config{Host: nobody.Addr().String()}, logr.Discard()) }()
	require.Eventually(t, func() bool {
		res, err := http.Get("http://" + address + "/healthz")
		return err == nil && res.Body.Close() == nil && res.StatusCode == http.StatusOK
	}, 10*time.Second, 20*time.Millisecond)
	res, err := http.Get("http://" + address + "/readyz")
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, http.StatusServiceUnavailable, res.StatusCode)
	cancel()
	require.NoError(t, <-ended)
}
