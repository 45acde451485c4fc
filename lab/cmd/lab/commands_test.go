package main

import (
	"bytes"
	"strings"
	"testing"
)

// The verbs are a contract: tests, demos and people use them by these words.
func TestTheVerbs(t *testing.T) {
	for _, verb := range []string{
		"up", "down", "clean", "status", "kubeconfig", "image load", "node add", "node list", "node remove", "node kill", "node cut", "node heal",
		"node freeze", "node thaw", "node replace", "volume stall", "volume resume", "control-plane stop", "control-plane start", "client",
	} {
		cmd, rest, err := root(new(bytes.Buffer)).Find(strings.Fields(verb))
		if err != nil || len(rest) > 0 || cmd.Short == "" || !cmd.Runnable() {
			t.Errorf("%s: %v, %q left", verb, err, rest)
		}
	}
}

func TestWrongArgumentsAreToldBeforeAnythingIsDone(t *testing.T) {
	for _, line := range []string{"node kill", "node cut a b", "volume stall", "up now", "image load", "client", "node explode", "up --nodes many"} {
		cmd := root(new(bytes.Buffer))
		cmd.SetArgs(append([]string{"--name", "test-nothing"}, strings.Fields(line)...))
		cmd.SetOut(new(bytes.Buffer))
		cmd.SetErr(new(bytes.Buffer))
		if err := cmd.ExecuteContext(t.Context()); err == nil {
			t.Errorf("%s was accepted", line)
		}
	}
}

func TestClaim(t *testing.T) {
	if got := claim("data"); got != "default/data" {
		t.Error(got)
	}
	if got := claim("prod/data"); got != "prod/data" {
		t.Error(got)
	}
}
