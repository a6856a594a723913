#!/usr/bin/env bash
# Current client libraries against a node of their own, with their defaults: redis-py, node-redis and ioredis,
# and the README's examples with them.
#
# Not part of `make test`, because it fetches the libraries. They stay in tests/clients/.packages.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
HOLDFAST=${HOLDFAST:-${CARGO_TARGET_DIR:-$here/../../target}/release/holdfast}
packages=$here/.packages
data=$(mktemp -d -t holdfast-clients.XXXXXX)
node=
cleanup() {
    [ -z "$node" ] || kill -TERM "$node" 2>/dev/null || true
    [ -z "$node" ] || wait "$node" || true
    rm -rf "$data"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# shellcheck source=tests/support/ports.sh
. "$here/../support/ports.sh"

port=$(free_port)
"$HOLDFAST" --port "$port" --http-port "$(free_port)" --peer-port "$(free_port)" --bind 127.0.0.1 --dir "$data/data" >"$data/log" 2>&1 &
node=$!
until listens "$port"; do
    kill -0 "$node" 2>/dev/null || { cat "$data/log"; exit 1; }
    sleep 0.05
done

if command -v python3 >/dev/null 2>&1 && python3 -m pip --version >/dev/null 2>&1; then
    [ -d "$packages/python/redis" ] || python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$packages/python" redis
    for script in redis_py readme_examples; do
        PYTHONPATH="$packages/python" python3 "$here/$script.py" "$port"
    done
else
    echo "SKIPPED: redis-py, since python3 with pip is not there"
fi
if command -v npm >/dev/null 2>&1; then
    [ -d "$packages/node_modules/ioredis" ] || npm install --silent --no-audit --no-fund --prefix "$packages" redis ioredis
    for script in node_clients readme_examples; do
        NODE_PATH="$packages/node_modules" node "$here/$script.js" "$port"
    done
else
    echo "SKIPPED: node-redis and ioredis, since npm is not there"
fi
