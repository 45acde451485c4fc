//go:build integration

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"theseus.dev/theseus/internal/postgres/pgtest"
)

// TestMain runs the tests as a user PostgreSQL accepts, and serves as the agent itself when started by them.
func TestMain(m *testing.M) {
	if conf := os.Getenv("THESEUS_TEST_AGENT"); conf != "" {
		os.Exit(agentMain(conf))
	}
	os.Exit(pgtest.Main(m))
}

func agentMain(encoded string) int {
	var conf Config
	if err := json.Unmarshal([]byte(encoded), &conf); err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	a, err := New(conf, os.Stdout)
	if err == nil {
		err = a.Run(ctx)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}
