package webhook

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	testclock "k8s.io/utils/clock/testing"

	"theseus.dev/theseus/internal/machine"
)

var (
	ctx  = context.Background()
	now  = time.Unix(1_800_000_000, 0)
	node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: "n1", UID: "uid-1", CreationTimestamp: metav1.NewTime(now),
		Labels: map[string]string{corev1.LabelTopologyZone: "a", "secret": "no"},
	}, Spec: corev1.NodeSpec{ProviderID: "lab://n1"}}
)

// endpoint answers every call with answer, and keeps what it was sent.
func endpoint(t *testing.T, status int, answer string) (Provider, *[]Request, *[]http.Header) {
	var got []Request
	var headers []http.Header
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var req Request
		if err := json.Unmarshal(body, &req); err != nil || r.Method != http.MethodPost {
			http.Error(w, "bad", http.StatusTeapot)
			return
		}
		if want := Sign([]byte("key"), r.Header.Get("Theseus-Timestamp"), body); r.Header.Get("Theseus-Signature") != want {
			http.Error(w, "not signed", http.StatusForbidden)
			return
		}
		got, headers = append(got, req), append(headers, r.Header)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(srv.Close)
	p := New(Options{URL: srv.URL, Policy: "p", HMAC: []byte("key"), Token: "tok", Clock: testclock.NewFakePassiveClock(now)})
	return p, &got, &headers
}

func TestFind(t *testing.T) {
	deadline := now.Add(time.Hour).UTC()
	text, _ := json.Marshal(Response{Machine: "rack-7", Held: true, Removing: true, RemovalDeadline: &deadline, Message: "firmware"})
	p, got, headers := endpoint(t, 200, string(text))
	m, err := p.Find(ctx, node)
	require.NoError(t, err)
	require.Equal(t, "rack-7", m.ID)
	require.True(t, m.Held)
	require.True(t, m.Removing)
	require.Equal(t, "firmware", m.Why)
	require.True(t, deadline.Equal(m.RemovalDeadline))
	r := (*got)[0]
	require.Equal(t, Status, r.Action)
	require.Equal(t, "lab://n1", r.Node.ProviderID)
	require.Equal(t, map[string]string{corev1.LabelTopologyZone: "a"}, r.Node.Labels, "no more than is needed")
	require.Equal(t, "Bearer tok", (*headers)[0].Get("Authorization"))
	require.Equal(t, "1800000000", (*headers)[0].Get("Theseus-Timestamp"))
}

func TestActions(t *testing.T) {
	p, got, _ := endpoint(t, 200, `{"done":true}`)
	m := machine.Machine{ID: "rack-7", Node: "n1", NodeUID: "uid-1"}
	for range 2 {
		require.NoError(t, p.Hold(ctx, m))
		require.NoError(t, p.Release(ctx, m))
		require.NoError(t, p.GiveBack(ctx, m))
		surge, err := p.Surge(ctx, m)
		require.NoError(t, err)
		require.True(t, surge.Done)
		replace, err := p.Replace(ctx, m)
		require.NoError(t, err)
		require.True(t, replace.Done)
	}
	var actions []Action
	for _, r := range *got {
		actions = append(actions, r.Action)
		require.Equal(t, "rack-7", r.Machine)
	}
	require.Equal(t, []Action{Hold, Release, GiveBack, Surge, Replace, Hold, Release, GiveBack, Surge, Replace}, actions)
	require.Equal(t, (*got)[4].IdempotencyKey, (*got)[9].IdempotencyKey)
	require.NotEqual(t, (*got)[3].IdempotencyKey, (*got)[4].IdempotencyKey)
}

func TestStatusCodes(t *testing.T) {
	m := machine.Machine{ID: "rack-7", Node: "n1", NodeUID: "uid-1"}
	p, _, _ := endpoint(t, 404, "")
	_, err := p.Find(ctx, node)
	require.ErrorIs(t, err, machine.ErrNotMine)
	gone, err := p.Gone(ctx, m)
	require.NoError(t, err)
	require.True(t, gone)
	require.NoError(t, p.Release(ctx, m), "nothing to release")

	p, _, _ = endpoint(t, 501, "")
	require.NoError(t, p.Hold(ctx, m))
	surge, err := p.Surge(ctx, m)
	require.NoError(t, err)
	require.True(t, surge.Done)
	_, err = p.Replace(ctx, m)
	require.Error(t, err, "an endpoint that cannot replace machines is no use")

	p, _, _ = endpoint(t, 500, strings.Repeat("x", 5000))
	gone, err = p.Gone(ctx, m)
	require.Error(t, err)
	require.False(t, gone)
	require.Less(t, len(err.Error()), 500)

	p, _, _ = endpoint(t, 200, "not json")
	_, err = p.Replace(ctx, m)
	require.ErrorContains(t, err, "JSON")

	p, _, _ = endpoint(t, 200, `{"gone":true}`)
	_, err = p.Find(ctx, node)
	require.ErrorIs(t, err, machine.ErrNotMine)

	p, _, _ = endpoint(t, 204, "")
	m2, err := p.Find(ctx, node)
	require.NoError(t, err)
	require.Equal(t, "n1", m2.ID, "an empty answer is an answer")
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	elsewhere := 0
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere++ }))
	defer other.Close()
	srv := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer srv.Close()
	_, err := New(Options{URL: srv.URL, Token: "tok"}).Find(ctx, node)
	require.Error(t, err)
	require.Zero(t, elsewhere)
}

func TestItEnds(t *testing.T) {
	stop := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	}))
	defer srv.Close()
	defer close(stop)
	_, err := New(Options{URL: srv.URL, Client: &http.Client{Timeout: 50 * time.Millisecond}}).Find(ctx, node)
	require.Error(t, err)
}
