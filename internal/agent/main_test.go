//go:build integration

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// TestMain runs the tests as a user PostgreSQL accepts, and serves as the agent itself when started by them.
func TestMain(m *testing.M) {
	if conf := os.Getenv("THESEUS_TEST_AGENT"); conf != "" {
		os.Exit(agentMain(conf))
	}
	if os.Getuid() == 0 {
		os.Exit(asUser())
	}
	os.Exit(m.Run())
}

func agentMain(encoded string) int {
	var conf Config
	if err := json.Unmarshal([]byte(encoded), &conf); err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	a, err := New(conf, slog.New(slog.NewJSONHandler(os.Stdout, nil)), os.Stdout)
	if err == nil {
		err = a.Run(ctx)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// asUser runs a copy of this binary as postgres or nobody: PostgreSQL refuses root.
func asUser() int {
	who, err := user.Lookup("postgres")
	if err != nil {
		if who, err = user.Lookup("nobody"); err != nil {
			panic(err)
		}
	}
	uid, _ := strconv.Atoi(who.Uid)
	gid, _ := strconv.Atoi(who.Gid)
	dir, err := os.MkdirTemp("", "theseus-it-")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary := filepath.Join(dir, "it.test")
	if err := copyFile(os.Args[0], binary); err != nil {
		panic(err)
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		panic(err)
	}
	cmd := exec.Command(binary, os.Args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	err = cmd.Run()
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}
