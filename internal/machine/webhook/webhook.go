// Package webhook drives machines through an HTTP endpoint: bare metal, a cloud without a provider of its own, the lab.
//
// Every call is one POST of a Request as JSON; the answer is a Response as JSON. The endpoint must take the same call
// any number of times: the idempotency key is the same for the same call about the same machine. Status codes: 2xx is an
// answer; 404 says that it has no such machine; 501 says that it has no such action, which is taken as done for Hold,
// Release, Surge and GiveBack; everything else is an error, and the call is repeated later.
//
// Calls are signed when a key is configured: Theseus-Signature is "v1=" and the hexadecimal HMAC-SHA256 of the value of
// Theseus-Timestamp (Unix seconds), a dot, and the body. A receiver should refuse timestamps that are minutes old.
// Redirects are not followed: they would carry the call, and its bearer token, elsewhere.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"theseus.dev/theseus/internal/machine"
)

// Action asked for.
type Action string

// The actions: the methods of machine.Provider, Find and Gone being Status.
const (
	Status   Action = "status"
	Hold     Action = "hold"
	Release  Action = "release"
	Surge    Action = "surge"
	GiveBack Action = "give-back"
	Replace  Action = "replace"
)

// Node as the endpoint is told about it.
type Node struct {
	Name       string            `json:"name"`
	UID        string            `json:"uid"`
	ProviderID string            `json:"providerID,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	CreatedAt  *time.Time        `json:"createdAt,omitempty"`
}

// Request is what is posted.
type Request struct {
	// Version is "theseus.dev/machine/v1".
	Version string `json:"version"`
	Action  Action `json:"action"`
	// Policy is the NodePolicy on whose behalf.
	Policy string `json:"policy"`
	// Machine is the endpoint's own name of the machine, as it gave it before; empty when it is not known yet.
	Machine string `json:"machine,omitempty"`
	Node    Node   `json:"node"`
	// IdempotencyKey is the same for every repetition of a call.
	IdempotencyKey string `json:"idempotencyKey"`
}

// Response is what is expected.
type Response struct {
	// Machine is the endpoint's name of the machine. Default: the name of the node.
	Machine string `json:"machine,omitempty"`
	// Done is true when there is nothing more to wait for: there is room (surge), or the removal is under way (replace).
	Done bool `json:"done,omitempty"`
	// Gone is true when the machine does not exist any more.
	Gone bool `json:"gone,omitempty"`
	// Held is true while the endpoint waits for a release.
	Held bool `json:"held,omitempty"`
	// Removing is true once somebody decided that the machine goes; RemovalDeadline is when it goes in any case.
	Removing        bool       `json:"removing,omitempty"`
	RemovalDeadline *time.Time `json:"removalDeadline,omitempty"`
	// Message for people.
	Message string `json:"message,omitempty"`
}

const (
	version     = "theseus.dev/machine/v1"
	maxResponse = 1 << 20
)

// errNotImplemented is the endpoint's 501.
var errNotImplemented = errors.New("the endpoint does not implement this action")

// Options of a Provider.
type Options struct {
	URL    string
	Policy string
	// HMAC key and bearer token; empty is none.
	HMAC  []byte
	Token string
	// Client with timeouts and TLS as wanted; its redirect policy is replaced. Default: 30 s.
	Client *http.Client
	Clock  clock.PassiveClock
}

// Provider posts.
type Provider struct{ o Options }

var _ machine.Provider = Provider{}

// New makes a provider.
func New(o Options) Provider {
	c := http.Client{Timeout: 30 * time.Second}
	if o.Client != nil {
		c = *o.Client
	}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	o.Client = &c
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	return Provider{o}
}

// Name is "Webhook".
func (Provider) Name() string { return "Webhook" }

// Find asks for the status of the machine under a node.
func (p Provider) Find(ctx context.Context, node *corev1.Node) (machine.Machine, error) {
	created := node.CreationTimestamp.UTC()
	labels := map[string]string{}
	for _, k := range []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion, corev1.LabelInstanceTypeStable} {
		if v, ok := node.Labels[k]; ok {
			labels[k] = v
		}
	}
	answer, err := p.post(ctx, Status, "", Node{
		Name: node.Name, UID: string(node.UID), ProviderID: node.Spec.ProviderID, Labels: labels, CreatedAt: &created,
	})
	if err != nil {
		return machine.Machine{}, err
	}
	if answer.Gone {
		return machine.Machine{}, machine.ErrNotMine
	}
	m := machine.Machine{
		ID: answer.Machine, UID: string(node.UID), Node: node.Name, NodeUID: string(node.UID), CreatedAt: node.CreationTimestamp.Time,
		Removing: answer.Removing, Held: answer.Held,
	}
	if m.ID == "" {
		m.ID = node.Name
	}
	if answer.Removing {
		m.Why = answer.Message
	}
	if answer.RemovalDeadline != nil {
		m.RemovalDeadline = *answer.RemovalDeadline
	}
	return m, nil
}

// Hold asks the endpoint to wait for a release.
func (p Provider) Hold(ctx context.Context, m machine.Machine) error { return p.try(ctx, Hold, m) }

// Release takes Hold back.
func (p Provider) Release(ctx context.Context, m machine.Machine) error {
	return p.try(ctx, Release, m)
}

// GiveBack undoes Surge.
func (p Provider) GiveBack(ctx context.Context, m machine.Machine) error {
	return p.try(ctx, GiveBack, m)
}

func (p Provider) try(ctx context.Context, a Action, m machine.Machine) error {
	_, err := p.call(ctx, a, m)
	if errors.Is(err, errNotImplemented) || errors.Is(err, machine.ErrNotMine) {
		return nil
	}
	return err
}

// Surge asks for room.
func (p Provider) Surge(ctx context.Context, m machine.Machine) (machine.Progress, error) {
	answer, err := p.call(ctx, Surge, m)
	if errors.Is(err, errNotImplemented) {
		return machine.Progress{Done: true, Message: "the endpoint makes no room"}, nil
	}
	return machine.Progress{Done: answer.Done, Message: answer.Message}, err
}

// Replace asks for the machine to be removed and for another one.
func (p Provider) Replace(ctx context.Context, m machine.Machine) (machine.Progress, error) {
	answer, err := p.call(ctx, Replace, m)
	if errors.Is(err, machine.ErrNotMine) {
		return machine.Progress{Done: true, Message: "the endpoint does not know the machine any more"}, nil
	}
	return machine.Progress{Done: answer.Done || answer.Gone, Message: answer.Message}, err
}

// Gone asks whether the machine is.
func (p Provider) Gone(ctx context.Context, m machine.Machine) (bool, error) {
	answer, err := p.call(ctx, Status, m)
	if errors.Is(err, machine.ErrNotMine) {
		return true, nil
	}
	return err == nil && answer.Gone, err
}

func (p Provider) call(ctx context.Context, a Action, m machine.Machine) (Response, error) {
	return p.post(ctx, a, m.ID, Node{Name: m.Node, UID: m.NodeUID})
}

func (p Provider) post(ctx context.Context, a Action, id string, node Node) (Response, error) {
	body, err := json.Marshal(Request{
		Version: version, Action: a, Policy: p.o.Policy, Machine: id, Node: node, IdempotencyKey: p.o.Policy + "/" + node.UID + "/" + string(a),
	})
	if err != nil {
		return Response{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.o.URL, bytes.NewReader(body))
	if err != nil {
		return Response{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	if p.o.Token != "" {
		req.Header.Set("Authorization", "Bearer "+p.o.Token)
	}
	if len(p.o.HMAC) > 0 {
		stamp := strconv.FormatInt(p.o.Clock.Now().Unix(), 10)
		req.Header.Set("Theseus-Timestamp", stamp)
		req.Header.Set("Theseus-Signature", Sign(p.o.HMAC, stamp, body))
	}
	resp, err := p.o.Client.Do(req)
	if err != nil {
		return Response{}, fmt.Errorf("%s of %s: %w", a, node.Name, err)
	}
	defer resp.Body.Close()
	return decode(resp, a, node.Name)
}

func decode(resp *http.Response, a Action, node string) (Response, error) {
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse))
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return Response{}, machine.ErrNotMine
	case resp.StatusCode == http.StatusNotImplemented:
		return Response{}, errNotImplemented
	case resp.StatusCode/100 != 2:
		return Response{}, fmt.Errorf("%s of %s: the endpoint answers %s: %.200q", a, node, resp.Status, text)
	case err != nil:
		return Response{}, fmt.Errorf("%s of %s: %w", a, node, err)
	}
	var answer Response
	if len(bytes.TrimSpace(text)) == 0 {
		return answer, nil
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return Response{}, fmt.Errorf("%s of %s: the answer is no JSON that is understood: %w", a, node, err)
	}
	return answer, nil
}

// Sign is the signature of a body: what a receiver compares (in constant time: hmac.Equal).
func Sign(key []byte, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(timestamp))
	mac.Write([]byte{'.'})
	mac.Write(body)
	return "v1=" + hex.EncodeToString(mac.Sum(nil))
}
