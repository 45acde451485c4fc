package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/utils/clock"
)

// Bounds of health. pollEvery is how often PgBouncer is asked for its pools, pollStart the same while it starts; one that has not answered for
// deafAfter is not ready, and for deadAfter is not alive.
const (
	pollEvery = 2 * time.Second
	pollStart = 20 * time.Millisecond
	deafAfter = 6 * time.Second
	deadAfter = 20 * time.Second
)

// health answers the kubelet.
type health struct {
	gate     *gate
	maxPause time.Duration
	clock    clock.PassiveClock

	answered atomic.Int64 // when PgBouncer last answered, Unix ms; the start of the process before it did
	spoke    atomic.Bool  // it has ever answered
	leaving  atomic.Bool
}

// live is nil while the process is worth keeping: PgBouncer answers, or not for too long yet. A missing primary is no
// reason to restart a gateway.
func (h *health) live() error {
	if age := h.age(); age > deadAfter {
		return fmt.Errorf("PgBouncer has not answered for %s", age.Round(time.Second))
	}
	return nil
}

// ready is nil while clients should be sent here: PgBouncer answers, and there is a primary or was until recently. For
// as long as clients would be held anyway it says ready, or every reparent would empty the Service.
func (h *health) ready() error {
	if h.leaving.Load() {
		return errors.New("shutting down")
	}
	if !h.spoke.Load() {
		return errors.New("PgBouncer has not started yet")
	}
	if age := h.age(); age > deafAfter {
		return fmt.Errorf("PgBouncer has not answered for %s", age.Round(time.Second))
	}
	_, route, _ := h.gate.state()
	held := h.gate.held()
	if route.Mode == Hold && (route.Term == 0 || held > h.maxPause) {
		return fmt.Errorf("no primary for %s: %s", held.Round(time.Millisecond), route.Why)
	}
	return nil
}

func (h *health) age() time.Duration {
	return h.clock.Since(time.UnixMilli(h.answered.Load()))
}

func (h *health) poolerAnswered() {
	h.answered.Store(h.clock.Now().UnixMilli())
	h.spoke.Store(true)
}

func (h *health) handler(m *metrics) http.Handler {
	mux := http.NewServeMux()
	check := func(f func() error) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if err := f(); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			_, _ = w.Write([]byte("ok\n"))
		}
	}
	mux.HandleFunc("GET /livez", check(h.live))
	mux.HandleFunc("GET /readyz", check(h.ready))
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	return mux
}

// serveHTTP serves until the context ends.
func serveHTTP(ctx context.Context, host string, port int, handler http.Handler) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
