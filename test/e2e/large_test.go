//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/postgres"
)

// largeDeadline bounds the whole comparison.
const largeDeadline = 40 * time.Minute

// A large instance is replaced under write load, and the same data is copied by hand in the same run, under the same load,
// the way one would without Theseus: pg_basebackup from a standby, start, catch up. It asserts that no client notices; the
// times are what `make bench-replacement` is for. REPLACED_MB is the amount of data; without it the test is skipped.
func TestALargeInstanceIsReplaced(t *testing.T) {
	megabytes, err := strconv.Atoi(os.Getenv("REPLACED_MB"))
	if err != nil {
		t.Skip("REPLACED_MB says how much data there is to be")
	}
	f := newFixture(t, func(db *v1alpha1.Database) {
		db.Spec.Storage.Size = *resource.NewQuantity(int64(3*megabytes+4<<10)<<20, resource.BinarySI)
	})
	ctx, cancel := context.WithTimeout(context.Background(), largeDeadline)
	defer cancel()
	f.ctx = ctx
	f.waitReady()
	f.fill(megabytes)
	f.waitSettled()

	members := current(f.shard()).Members
	load := f.startLoad()
	copied, caught := f.copyByHand(members[0], members[1])
	plain := copied + caught
	measured(t, "by hand, %d MiB: pg_basebackup %.1f s, catching up %.1f s", megabytes, copied.Seconds(), caught.Seconds())
	f.waitSettled()

	start := time.Now()
	out := f.theseus("replace", members[1], "--database", f.namespace+"/"+f.database, "--wait", "30m")
	took := time.Since(start)
	measured(t, "replaced in %.1f s:\n%s", took.Seconds(), out)
	var seeded time.Duration
	for _, rp := range f.replacements() {
		for _, s := range rp.Status.Steps {
			if s.FinishedAt != nil && slices.Contains([]string{"Seeding", "CatchingUp"}, string(s.Phase)) {
				seeded += s.FinishedAt.Sub(s.StartedAt.Time)
			}
		}
	}
	f.waitSettled()
	s := load.stopAndVerify(noErrors)
	f.report(fmt.Sprintf(`# Replacing an instance of %d MiB

Three instances in the lab, all on one machine; four writers through the gateway the whole time; one run.

| | seconds |
|---|---|
| by hand: pg_basebackup from a standby | %.1f |
| by hand: start and catch up | %.1f |
| Theseus: the whole replacement, from the request to the old volume's deletion | %.1f |
| of which seeding and catching up | %.1f |

Ratio of the whole replacement to the copy by hand: **%.2f**. Clients: %d writes acknowledged, 0 errors, 0 lost, longest stall %.0f ms.
`, megabytes, copied.Seconds(), caught.Seconds(), took.Seconds(), seeded.Seconds(), took.Seconds()/plain.Seconds(), s.Acked, s.LongestStallMS))
}

// fill writes so many megabytes that do not compress.
func (f *fixture) fill(megabytes int) {
	f.t.Helper()
	f.psql("CREATE TABLE bulk (id bigint, filler bytea)")
	f.psql("ALTER TABLE bulk ALTER filler SET STORAGE EXTERNAL")
	const step = 128
	for done := 0; done < megabytes; done += step {
		// A MiB of random bytes, written often: PostgreSQL does not look for repetition.
		f.psql(fmt.Sprintf(`WITH r AS MATERIALIZED (SELECT string_agg(uuid_send(gen_random_uuid()), ''::bytea) AS b FROM generate_series(1, 65536))
			INSERT INTO bulk SELECT i, b FROM r, generate_series(1, %d) i`, min(step, megabytes-done)))
	}
}

// copyByHand copies source onto the volume of host, starts the copy as a standby of the primary, and removes it again.
func (f *fixture) copyByHand(host, source string) (copied, caught time.Duration) {
	f.t.Helper()
	conninfo := func(instance string) string {
		pod := &corev1.Pod{}
		require.NoError(f.t, kit.Client.Get(f.ctx, client.ObjectKey{Namespace: f.namespace, Name: instance}, pod))
		const tls = "/run/theseus/tls/"
		return fmt.Sprintf("host=%s port=%d user=%s sslmode=require sslcert=%stls.crt sslkey=%stls.key sslrootcert=%sca.crt",
			pod.Status.PodIP, agentapi.PostgresPort, postgres.ReplicatorRole, tls, tls, tls)
	}
	const bin, dir = "/usr/lib/postgresql/17/bin/", "/var/lib/theseus/by-hand"
	defer f.inPod(host, "rm -rf "+dir)
	start := time.Now()
	f.inPod(host, fmt.Sprintf(`%spg_basebackup -d "%s" -D %s -X stream -c fast --no-password`, bin, conninfo(source), dir))
	copied = time.Since(start)
	target := f.psql("SELECT pg_current_wal_lsn()")
	start = time.Now()
	f.inPod(host, strings.Join([]string{
		"touch " + dir + "/standby.signal",
		// Its own port and socket; what the agent wrote of synchronous replication and slots is not for it. A standby must not
		// have less room for walsenders than its primary.
		fmt.Sprintf(`%spostgres -D %s -c port=5499 -c max_wal_senders=24 -c listen_addresses= -c unix_socket_directories=%s -c primary_slot_name= -c "primary_conninfo=%s" >%s/log 2>&1 &`,
			bin, dir, dir, conninfo(f.shard().Status.Primary), dir),
		"pid=$!",
		fmt.Sprintf(`for i in $(seq 6000); do [ "$(psql -h %s -p 5499 -U postgres -qtAc "SELECT pg_last_wal_replay_lsn() >= '%s'" postgres 2>/dev/null)" = t ] && break; kill -0 $pid || { i=6000; break; }; sleep 0.1; done`, dir, target),
		`[ "$i" -lt 6000 ] || { tail -5 ` + dir + `/log >&2; exit 1; }`,
		"kill -INT $pid; wait $pid",
	}, "\n"))
	return copied, time.Since(start)
}

// report prints, and writes to the file REPLACED_OUT if that is given.
func (f *fixture) report(text string) {
	f.t.Helper()
	measured(f.t, "%s", text)
	if out := os.Getenv("REPLACED_OUT"); out != "" {
		require.NoError(f.t, os.WriteFile(out, []byte(text), 0o644))
	}
}
