#!/usr/bin/env bash
# Coverage-guided fuzzing: run.sh [target] [seconds]. Without a target each has its turn. What crashes one is kept in
# tests/fuzz/artifacts; `cargo test --test fuzz` replays the corpus.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
target="${1:-}"
seconds="${2:-60}"
if ! cargo fuzz --version >/dev/null 2>&1 || ! cargo +nightly --version >/dev/null 2>&1; then
    echo "cargo-fuzz and a nightly compiler are wanted; to have them: rustup toolchain install nightly && cargo install --locked cargo-fuzz" >&2
    exit 1
fi
if [ -n "$target" ]; then
    targets=("$target")
else
    mapfile -t targets < <(cargo +nightly fuzz list --fuzz-dir tests/fuzz)
fi
for each in "${targets[@]}"; do
    echo "== $each for $seconds s"
    # New inputs stay out of the committed corpus.
    mkdir -p "tests/fuzz/found/$each"
    cargo +nightly fuzz run --fuzz-dir tests/fuzz "$each" "tests/fuzz/found/$each" "tests/fuzz/corpus/$each" -- \
        -max_total_time="$seconds" -rss_limit_mb=2048
done
