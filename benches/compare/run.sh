#!/usr/bin/env bash
# Holdfast beside Debian's redis-server: speed in the same durability mode, memory per key, time to serve again.
#
# Prints Markdown. Only the ratios mean something on another machine, and only within one run: both servers take
# turns on the same two ports, and each figure is the median of REPEATS. redis-benchmark is the client of both.
#
#   HOLDFAST   the binary                              (default: target/release/holdfast, CARGO_TARGET_DIR honoured)
#   REPEATS    repeats of each measurement             (default: 3)
#   MODES      of "no everysec always"                 (default: all)
#   TESTS      redis-benchmark's -t                    (default: get,set)
#   CLIENTS    redis-benchmark's -c                    (default: 50)
#   PIPELINES  redis-benchmark's -P, one after another (default: 1 16)
#   SCALE      multiplies the number of requests       (default: 1)
#   KEYS       for the memory and restart figures      (default: 1000000; 0 leaves them out)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
HOLDFAST=${HOLDFAST:-${CARGO_TARGET_DIR:-$root/target}/release/holdfast}
REPEATS=${REPEATS:-3}
MODES=${MODES:-no everysec always}
TESTS=${TESTS:-get,set}
CLIENTS=${CLIENTS:-50}
PIPELINES=${PIPELINES:-1 16}
SCALE=${SCALE:-1}
KEYS=${KEYS:-1000000}
VALUE_BYTES=64

say() { printf '%s\n' "$*" >&2; }
for program in redis-server redis-benchmark redis-cli "$HOLDFAST"; do
    command -v "$program" >/dev/null 2>&1 || { say "$program is not there (make bench builds and installs what it needs)"; exit 1; }
done

data=$(mktemp -d -t holdfast-compare.XXXXXX)
declare -A pid=() port=()
cleanup() {
    for server in "${!pid[@]}"; do kill -KILL "${pid[$server]}" 2>/dev/null || true; done
    rm -rf "$data"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# shellcheck source=tests/support/ports.sh
. "$root/tests/support/ports.sh"

cli() { redis-cli -h 127.0.0.1 -p "${port[$1]}" "${@:2}" 2>/dev/null; }

# launch SERVER MODE: starts it on its port and directory, without waiting.
launch() {
    local server=$1 mode=$2 aof=yes
    mkdir -p "$data/$server"
    if [ "$server" = holdfast ]; then
        "$HOLDFAST" --port "${port[holdfast]}" --http-port "${port[http]}" --peer-port "${port[peer]}" \
            --bind 127.0.0.1 --dir "$data/holdfast" --appendfsync "$mode" >"$data/holdfast.log" 2>&1 &
    else
        # Without fsync Redis has no log at all: its fastest form.
        [ "$mode" = no ] && aof=no
        redis-server --port "${port[redis]}" --bind 127.0.0.1 --dir "$data/redis" --save '' \
            --appendonly "$aof" --appendfsync "$mode" --auto-aof-rewrite-percentage 0 --daemonize no \
            >"$data/redis.log" 2>&1 &
    fi
    pid[$server]=$!
}

# serving SERVER: waits until it answers for its data, a minute at most.
serving() {
    local tries=0
    until [ "$(cli "$1" ping || true)" = PONG ]; do
        kill -0 "${pid[$1]}" 2>/dev/null || { say "$1 ended:"; tail -5 "$data/$1.log" >&2; exit 1; }
        tries=$((tries + 1))
        [ "$tries" -lt 6000 ] || { say "$1 does not answer"; exit 1; }
        sleep 0.01
    done
}

# stop SERVER SIGNAL: ends it and waits until it is gone.
stop() {
    kill "-$2" "${pid[$1]}" 2>/dev/null || true
    wait "${pid[$1]}" 2>/dev/null || true
    unset "pid[$1]"
}

start_both() {
    rm -rf "$data/holdfast" "$data/redis"
    port=([holdfast]=$(free_port) [http]=$(free_port) [peer]=$(free_port) [redis]=$(free_port))
    for server in holdfast redis; do
        launch "$server" "$1"
        serving "$server"
    done
}

stop_both() {
    for server in holdfast redis; do stop "$server" TERM; done
}

# measure SERVER PIPELINE REQUESTS: appends "SERVER TEST PIPELINE rps p99_ms" for each test.
measure() {
    redis-benchmark -h 127.0.0.1 -p "${port[$1]}" -c "$CLIENTS" -P "$2" -n "$3" -d "$VALUE_BYTES" -r 100000 -t "$TESTS" --csv 2>>"$data/errors" |
        awk -F, -v server="$1" -v pipeline="$2" 'NR > 1 { gsub(/"/, ""); gsub(/ /, "_", $1); print server, $1, pipeline, $2, $7 }' \
            >>"$data/figures"
}

# Requests for about three seconds: fewer where every write waits for the disk.
requests() {
    local mode=$1 pipeline=$2 n=200000
    [ "$pipeline" -gt 1 ] && n=1000000
    [ "$mode" = always ] && n=$((n / 2))
    awk -v n="$n" -v scale="$SCALE" 'BEGIN { printf "%d\n", n * scale }'
}

speed() {
    local mode=$1 pipeline repeat server
    : >"$data/figures"
    start_both "$mode"
    for pipeline in $PIPELINES; do
        for repeat in $(seq "$REPEATS"); do
            for server in holdfast redis; do measure "$server" "$pipeline" "$(requests "$mode" "$pipeline")"; done
            say "appendfsync $mode, -P $pipeline: $repeat of $REPEATS"
        done
    done
    stop_both
    sort -k2,2 -k3,3n -k1,1 -k4,4n "$data/figures" | awk -v mode="$mode" '
        { key = $2 " " $3; if (!(key in seen)) { seen[key] = 1; order[++keys] = key }
          at = $1 " " key; rps[at, ++count[at]] = $4; p99[at] = p99[at] " " $5 }
        function middle(at) { return rps[at, int((count[at] + 1) / 2)] }
        function middle_p99(at,   all, n, i, j, t) {
            n = split(p99[at], all, " ")
            for (i = 2; i <= n; i++) for (j = i; j > 1 && all[j - 1] + 0 > all[j] + 0; j--) { t = all[j]; all[j] = all[j - 1]; all[j - 1] = t }
            return all[int((n + 1) / 2)]
        }
        END { for (i = 1; i <= keys; i++) {
            split(order[i], part, " "); h = "holdfast " order[i]; r = "redis " order[i]
            printf "| %s | %s | %s | %d | %d | **%.2f** | %s / %s |\n", mode, part[1], part[2], middle(h), middle(r), middle(h) / middle(r), middle_p99(h), middle_p99(r)
        } }'
}

resident_bytes() { awk '/^VmRSS:/ { print $2 * 1024 }' "/proc/${pid[$1]}/status"; }

# load SERVER: KEYS keys of 64-byte values, each once, down one pipeline.
load() {
    awk -v keys="$KEYS" -v bytes="$VALUE_BYTES" 'BEGIN {
        value = sprintf("%" bytes "s", ""); gsub(/ /, "x", value)
        for (n = 0; n < keys; n++)
            printf "*3\r\n$3\r\nSET\r\n$16\r\nkey:%012d\r\n$%d\r\n%s\r\n", n, bytes, value
    }' | redis-cli -h 127.0.0.1 -p "${port[$1]}" --pipe >"$data/load.log" 2>&1 || { cat "$data/load.log" >&2; exit 1; }
    [ "$(cli "$1" dbsize)" = "$KEYS" ] || { say "$1 holds $(cli "$1" dbsize) of $KEYS keys"; exit 1; }
}

# Kills it and counts milliseconds until the last key can be read again.
restart_ms() {
    local server=$1 started last
    last=$(printf 'key:%012d' $((KEYS - 1)))
    stop "$server" KILL
    started=$(date +%s%N)
    launch "$server" everysec
    until [ "$(cli "$server" strlen "$last" || true)" = "$VALUE_BYTES" ]; do
        kill -0 "${pid[$server]}" 2>/dev/null || { say "$server ended:"; tail -5 "$data/$server.log" >&2; exit 1; }
        sleep 0.005
    done
    echo $((($(date +%s%N) - started) / 1000000))
}

memory_and_restart() {
    local server empty
    declare -A per_key=() restart=()
    start_both everysec
    for server in holdfast redis; do
        empty=$(resident_bytes "$server")
        load "$server"
        # What is written in the background ends first.
        sleep 5
        per_key[$server]=$((($(resident_bytes "$server") - empty) / KEYS))
        # Called outside a subshell, since it changes whose process is whose.
        restart_ms "$server" >"$data/restart"
        restart[$server]=$(cat "$data/restart")
        say "$server: $KEYS keys loaded and restarted"
    done
    stop_both
    printf '\n| %s keys of %s bytes | Holdfast | Redis | ratio |\n|---|---|---|---|\n' "$KEYS" "$VALUE_BYTES"
    awk -v h="${per_key[holdfast]}" -v r="${per_key[redis]}" 'BEGIN { printf "| resident bytes per key | %d | %d | **%.2f** |\n", h, r, h / r }'
    awk -v h="${restart[holdfast]}" -v r="${restart[redis]}" 'BEGIN { printf "| ms until served again after kill -9 | %d | %d | %.2f |\n", h, r, h / r }'
}

printf 'redis-benchmark -c %s -d %s -r 100000, median of %s, %s cores, beside %s\n\n' \
    "$CLIENTS" "$VALUE_BYTES" "$REPEATS" "$(nproc)" "$(redis-server --version | awk '{ print "Redis " substr($3, 3) }')"
printf '| appendfsync | command | -P | Holdfast/s | Redis/s | ratio | p99 ms |\n|---|---|---|---|---|---|---|\n'
for mode in $MODES; do speed "$mode"; done
[ "$KEYS" -eq 0 ] || memory_and_restart
if [ -s "$data/errors" ]; then
    say "redis-benchmark said:"
    sort "$data/errors" | uniq -c >&2
fi
