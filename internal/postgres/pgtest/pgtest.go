//go:build integration

// Package pgtest lets tests run a real PostgreSQL: it finds the programs, and leaves root, which PostgreSQL refuses.
package pgtest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// Main is for TestMain: it runs the tests as a user PostgreSQL accepts.
func Main(m *testing.M) int {
	if os.Getuid() == 0 {
		return asUser()
	}
	return m.Run()
}

// Bin is the directory of PostgreSQL's programs: THESEUS_TEST_PGBIN, or the newest of Debian's. Without any the test is
// skipped.
func Bin(t testing.TB) string {
	if dir := os.Getenv("THESEUS_TEST_PGBIN"); dir != "" {
		return dir
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		t.Skip("no PostgreSQL: set THESEUS_TEST_PGBIN")
	}
	return filepath.Dir(found[len(found)-1])
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
	var exit *exec.ExitError
	if errors.As(err, &exit) {
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
