#!/usr/bin/env bash
# The demo: a real PostgreSQL with a million orders, a service and a host on this
# machine, the example's resources, one query through a gateway that is injected for
# it. ONCE=1 ends after the answer. Whatever it started or made is gone at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

rows=${ROWS:-1000000}
pgbin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
work=$(mktemp -d /tmp/sluice-demo.XXXXXX)
chmod 711 "$work"
sluice=$PWD/bin/sluice
rundir=/run/sluice-demo
socket=$work/sluice.sock
export SLUICE_SOCKET=$socket
up=

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }

cleanup() {
  trap - EXIT INT TERM
  if [[ -n $up ]] && kill -0 "$up" 2>/dev/null; then
    kill -TERM "$up" 2>/dev/null || true
    wait "$up" 2>/dev/null || true
  fi
  "$sluice" host cleanup --run-dir "$rundir" >/dev/null 2>>"$work/cleanup.log" || cat "$work/cleanup.log" >&2
  [[ -d $work/pg ]] && as_postgres "$pgbin/pg_ctl" -D "$work/pg" -m immediate stop >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

as_postgres() { (cd / && setpriv --reuid=postgres --regid=postgres --init-groups "$@"); }
free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

if [[ $(id -u) -ne 0 ]]; then
  echo "error: the demo needs root: it makes network namespaces and runs a container" >&2
  echo "hint: sudo make demo" >&2
  exit 4
fi

step "1. A PostgreSQL server that only this machine's loopback reaches, with $rows orders"
port=5432
example=examples/corp
if ! free $port; then
  port=$(for p in $(seq 15432 15532); do free "$p" && echo "$p" && break; done)
  echo "port 5432 is in use here, so the demo's own server takes $port"
  cp -r examples/corp "$work/corp"
  sed -i "s/127\.0\.0\.1:5432/127.0.0.1:$port/" "$work/corp/network.yaml"
  example=$work/corp
fi
export ORDERS_PASSWORD=$(head -c 18 /dev/urandom | base64 | tr -d '/+=')
mkdir "$work/pg" && chown postgres: "$work/pg" && chmod 700 "$work/pg"
as_postgres "$pgbin/initdb" -D "$work/pg" -A trust -E UTF8 --locale=C >/dev/null
cat >>"$work/pg/postgresql.conf" <<CONF
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = '$work/pg'
fsync = off
password_encryption = scram-sha-256
CONF
cat >"$work/pg/pg_hba.conf" <<HBA
local all postgres trust
host  all all 127.0.0.1/32 scram-sha-256
HBA
as_postgres "$pgbin/pg_ctl" -D "$work/pg" -l "$work/pg/log" -w start >/dev/null
psql() { as_postgres "$pgbin/psql" -qX -v ON_ERROR_STOP=1 -h "$work/pg" -p "$port" -U postgres "$@"; }
psql -c "create database orders" -c "create role report login password '$ORDERS_PASSWORD'"
psql -d orders -v rows="$rows" -f - <scripts/demo.sql
echo "orders: $(psql -d orders -Atc 'select count(*) from orders') rows on 127.0.0.1:$port, for user report alone"

step "2. Service and host on this machine"
"$sluice" up --data-dir "$work/data" --run-dir "$rundir" --socket "$socket" >"$work/up.log" 2>&1 &
up=$!
for _ in $(seq 100); do
  "$sluice" get hosts 2>/dev/null | grep -q yes && break
  kill -0 "$up" 2>/dev/null || { cat "$work/up.log" >&2; exit 1; }
  sleep 0.1
done
run "$sluice" get hosts
token=$(grep -o 'sluice_[A-Za-z0-9_-]*' "$work/up.log" | head -n 1)

step "3. A private network, its rules, a gateway, a data source"
# port 5432 in the network, whatever the target's: the endpoint answers on the target's port
if [[ $port -ne 5432 ]]; then
  sed -i "s/port: 5432/port: $port/; s/\"5432\"/\"$port\"/g" "$example"/*.yaml
fi
run "$sluice" apply -f "$example"

step "4. The query: the gateway is paused, so a container is injected for it"
run "$sluice" query -s orders --timeline \
  "select region, count(*) as orders, sum(amount) as revenue, max(placed_at)::date as latest from orders group by region order by revenue desc"

step "5. The same again: the gateway is awake"
run "$sluice" query -s orders --timeline "select count(*) from orders where amount > 500"

step "What the rules say, and what a packet met"
run "$sluice" check -g corp-bi --to orders.corp.internal:$port
run "$sluice" get members

if [[ -n ${ONCE:-} ]]; then
  step "Cleaning up"
  exit 0
fi
step "Go on by hand, in another terminal (Ctrl-C here ends the demo and cleans up)"
cat <<HELP
export SLUICE_SOCKET=$socket
$sluice query -s orders "select * from orders limit 10"
$sluice queries
$sluice gateway pause corp-bi
curl -s -H "Authorization: Bearer $token" -H 'Content-Type: application/json' -H 'Accept: text/csv' \\
  -d '{"source":"orders","sql":"select * from orders limit 3"}' http://127.0.0.1:8480/v1/query
Flight SQL: grpc://127.0.0.1:8481, the token as Bearer or password, header sluice-source: orders
HELP
wait "$up"
