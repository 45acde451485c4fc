# What a Pod of the operand does, and what it must not be able to do. Run by operand_test.go
# inside the image, with the image's environment and none other.
fail() { echo "FAILED: $*" >&2; exit 1; }

[ "$(id -u):$(id -g)" = 10001:10001 ] || fail "wrong user"
! touch /x 2>/dev/null || fail "the root file system is writable"
[ -z "$(find / -xdev -perm /6000 -type f -print -quit 2>/dev/null)" ] || fail "a setuid program"
[ ! -e /etc/apt ] || fail "apt's configuration"

initdb --auth=trust --username=postgres --data-checksums --locale=C.UTF-8 --pgdata="$PGDATA" > /tmp/initdb.log || fail "initdb: $(cat /tmp/initdb.log)"
"$PGBIN/pg_ctl" start -w -t 30 -l /tmp/log -o "-c unix_socket_directories=$PGHOST -c listen_addresses=" || fail "start: $(cat /tmp/log)"

sql() { psql -U postgres -At -v ON_ERROR_STOP=1 -c "$1"; }
is() { [ "$(sql "$1")" = "$2" ] || fail "$1: $(sql "$1"), not $2"; }
is "select current_setting('server_version_num')::int / 10000" "$PG_MAJOR"
is "select datcollate from pg_database where datname = 'postgres'" C.UTF-8
is "select timestamptz '2026-07-01 12:00+00' at time zone 'Europe/Berlin'" "2026-07-01 14:00:00"
is "select 'a' < 'B' collate \"de-x-icu\"" t
# Without LLVM, a query that asks for JIT must go on without.
is "set jit_above_cost = 0; select count(*) from generate_series(1, 1000)" "SET
1000"
sql "create extension pg_stat_statements" > /tmp/out
pg_basebackup --username=postgres --checkpoint=fast --pgdata=/tmp/backup
pg_controldata /tmp/backup | grep -q 'Database cluster state' || fail "no control data"

pgbouncer --version
pgbackrest version
psql --version
"$PGBIN/pg_ctl" stop -w -m fast > /tmp/out
openssl verify -CAfile /etc/ssl/certs/ca-certificates.crt /usr/share/ca-certificates/mozilla/ISRG_Root_X1.crt
echo "all is well"
