#!/bin/sh
# Runs the three nodes of this directory in one terminal, each line with its node before it, until Ctrl-C.
#
#   make cluster, or: redis-conf-examples/three-nodes/run.sh [--directive value ...]    (the same for all nodes)
#
# A node that ends, or is killed, leaves the others running. Its data goes to ./data-three-nodes/node-N.
#
#   HOLDFAST   the binary    (default: target/release/holdfast, CARGO_TARGET_DIR honoured)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
HOLDFAST=${HOLDFAST:-${CARGO_TARGET_DIR:-$root/target}/release/holdfast}
command -v "$HOLDFAST" >/dev/null || { echo "$HOLDFAST is not there: make cluster builds it" >&2; exit 1; }

# Each node writes to a pipe of its own: a pipeline would leave this script with the process id of its last part.
pipes=$(mktemp -d)
trap 'rm -rf "$pipes"' EXIT

# It ends with its node, not by a signal: the last lines count too.
with_name() {
    trap '' INT TERM HUP
    while IFS= read -r line; do
        printf 'node-%s  %s\n' "$1" "$line"
    done
    printf 'node-%s  (ended)\n' "$1"
}

stop_all() {
    # One that has ended before is no reason to spare the others.
    for pid in $nodes; do
        kill -TERM "$pid" 2>/dev/null || true
    done
}

nodes=
readers=
trap stop_all INT TERM HUP
for node in 1 2 3; do
    mkfifo "$pipes/$node"
    with_name "$node" <"$pipes/$node" &
    readers="$readers $!"
    "$HOLDFAST" "$here/node-$node.conf" "$@" >"$pipes/$node" 2>&1 &
    nodes="$nodes $!"
done

# A signal ends a wait early, so each process is waited for until it is really gone; the readers end with their nodes.
for pid in $nodes $readers; do
    while kill -0 "$pid" 2>/dev/null; do
        wait "$pid" || true
    done
done
