//go:build integration

package gateway

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const costRuns = 5

// TestHopCost compares the gateway with the same PgBouncer connected to PostgreSQL without the hop, PgBouncer doing the
// TLS itself. It takes a minute and says something on a quiet machine only: set THESEUS_COST to run it.
func TestHopCost(t *testing.T) {
	if os.Getenv("THESEUS_COST") == "" {
		t.Skip("set THESEUS_COST to compare throughput with and without the hop")
	}
	l := newLab(t, nil)
	l.a.establish(1)
	bench := filepath.Join(l.a.bin, "pgbench")
	runTool(t, bench, "-h", l.a.data, "-p", fmt.Sprint(l.a.port), "-U", "postgres", "-i", "-q", "-s", "5", "app")
	l.a.sql("app", "GRANT ALL ON ALL TABLES IN SCHEMA public TO app")

	dir, port := shortDir(t), freePort(t)
	direct := strings.NewReplacer(
		fmt.Sprintf("listen_port = %d", l.port), fmt.Sprintf("listen_port = %d", port),
		l.gateway.config.RunDir+"/console", dir,
		fmt.Sprintf("host=%s/server port=5432", l.gateway.config.RunDir), fmt.Sprintf("host=127.0.0.1 port=%d", l.a.port),
		"server_tls_sslmode = disable", fmt.Sprintf("server_tls_sslmode = verify-ca\nserver_tls_ca_file = %[1]s/ca.crt\nserver_tls_cert_file = %[1]s/tls.crt\nserver_tls_key_file = %[1]s/tls.key", l.tlsDir),
	).Replace(poolerConfig(l.gateway.config))
	ini := filepath.Join(dir, "direct.ini")
	require.NoError(t, os.WriteFile(ini, []byte(direct), 0o600))
	cmd := exec.Command(l.gateway.config.PgBouncer, ini)
	cmd.Stderr = testWriter{t}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		_ = cmd.Wait()
	})
	time.Sleep(500 * time.Millisecond)

	tps := func(port int, args ...string) float64 {
		cmd := exec.Command(bench, append([]string{"-n", "-T", "4", "-M", "prepared", "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-U", "app"}, append(args, "app")...)...)
		cmd.Env = append(os.Environ(), "PGPASSWORD="+appPassword, "PGSSLMODE=require")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		for line := range strings.Lines(string(out)) {
			if rest, ok := strings.CutPrefix(line, "tps = "); ok {
				v, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
				require.NoError(t, err)
				return v
			}
		}
		require.Fail(t, string(out))
		return 0
	}
	for _, kind := range [][]string{{"-S", "-c", "1"}, {"-S", "-c", "8"}, {"-c", "8"}} {
		var with, without, ratios []float64
		for range costRuns {
			w, o := tps(l.port, kind...), tps(port, kind...)
			with, without, ratios = append(with, w), append(without, o), append(ratios, w/o)
		}
		slices.Sort(ratios)
		slices.Sort(with)
		slices.Sort(without)
		t.Logf("pgbench %v: %.0f tps through the hop, %.0f without, median of ratios %.2f", kind, with[len(with)/2], without[len(with)/2], ratios[len(with)/2])
	}
}
