package machinehook

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// yard has node-a, node-b that is gone, and a broken crane.
type yard struct {
	calls []string
	fail  error
}

func (y *yard) Status(node string) (State, error) {
	switch node {
	case "node-a":
		return State{Message: "running"}, nil
	case "node-b":
		return State{Gone: true}, nil
	}
	return State{}, ErrUnknown
}

func (y *yard) Surge(node string) (bool, string, error) {
	y.calls = append(y.calls, "surge "+node)
	return len(y.calls) > 1, "being made", y.fail
}

func (y *yard) GiveBack(node string) error {
	y.calls = append(y.calls, "give-back "+node)
	return y.fail
}

func (y *yard) Replace(node string) (string, error) {
	y.calls = append(y.calls, "replace "+node)
	return "being removed", y.fail
}

func post(t *testing.T, y *yard, body string) (int, response) {
	t.Helper()
	w := httptest.NewRecorder()
	Handler(y, slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(body)))
	var r response
	if w.Code == http.StatusOK {
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &r))
	}
	return w.Code, r
}

func call(t *testing.T, y *yard, action, node string) (int, response) {
	t.Helper()
	return post(t, y, `{"version":"theseus.dev/machine/v1","action":"`+action+`","node":{"name":"`+node+`","uid":"u"},"idempotencyKey":"k"}`)
}

func TestCalls(t *testing.T) {
	y := &yard{}
	for _, tc := range []struct {
		action, node string
		code         int
		want         response
	}{
		{"status", "node-a", 200, response{Machine: "node-a", Message: "running"}},
		{"status", "node-b", 200, response{Machine: "node-b", Gone: true}},
		{"status", "node-c", 404, response{}},
		{"hold", "node-a", 501, response{}},
		{"release", "node-a", 501, response{}},
		{"surge", "node-a", 200, response{Machine: "node-a", Message: "being made"}},
		{"surge", "node-a", 200, response{Machine: "node-a", Done: true, Message: "being made"}},
		{"surge", "node-b", 200, response{Machine: "node-b", Gone: true}},
		{"give-back", "node-a", 200, response{Machine: "node-a", Message: "running"}},
		{"replace", "node-a", 200, response{Machine: "node-a", Done: true, Removing: true, Message: "being removed"}},
		{"replace", "node-b", 200, response{Machine: "node-b", Gone: true}},
		{"replace", "node-c", 404, response{}},
	} {
		code, got := call(t, y, tc.action, tc.node)
		require.Equal(t, tc.code, code, tc)
		require.Equal(t, tc.want, got, tc)
	}
	require.Equal(t, []string{"surge node-a", "surge node-a", "give-back node-a", "replace node-a"}, y.calls)
}

func TestWhatIsRefused(t *testing.T) {
	code, _ := post(t, &yard{}, "{")
	require.Equal(t, 400, code)
	code, _ = post(t, &yard{}, `{"version":"theseus.dev/machine/v2","action":"status","node":{"name":"node-a"}}`)
	require.Equal(t, 400, code)
	code, _ = call(t, &yard{fail: errors.New("no crane")}, "replace", "node-a")
	require.Equal(t, 500, code)
}
