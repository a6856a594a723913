# `make` prints what there is. Everything is built with one profile, so that what is tested is what runs.

CARGO ?= cargo
PROFILE := --release --locked
# For `make run`, e.g. ARGS="redis-conf-examples/single.conf --port 7000".
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run cluster test bench check clients setup setup-tests

help: ## Prints this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: setup ## Builds and starts a node on 127.0.0.1:6379, data in ./data (ARGS="file.conf --port 7000" to change that)
	$(CARGO) run $(PROFILE) --bin holdfast -- $(ARGS)

cluster: setup ## Builds and starts three nodes on 127.0.0.1:6379 to 6381, data in ./data-three-nodes/node-N, until Ctrl-C
	$(CARGO) build $(PROFILE) --bin holdfast
	redis-conf-examples/three-nodes/run.sh $(ARGS)

test: setup-tests check ## Checks, then every test (CRASH_WRITES=1000000 for the long crash test)
	$(CARGO) test $(PROFILE)

bench: setup-tests ## Criterion benches, then redis-benchmark beside redis-server, as a table of ratios
	$(CARGO) bench --locked
	$(CARGO) build $(PROFILE) --bin holdfast
	benches/compare/run.sh

check: setup ## Formatting, clippy with warnings as errors, advisories and licences
	$(CARGO) fmt --check
	$(CARGO) clippy $(PROFILE) --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null 2>&1; then cargo deny --locked check; \
	else echo "cargo-deny is not there, so deny.toml was not checked; to have it: cargo install --locked cargo-deny"; fi

clients: setup ## Runs redis-py, node-redis and ioredis against a node of its own (wants pip, npm and a network)
	$(CARGO) build $(PROFILE) --bin holdfast
	tests/clients/run.sh

setup:
	@.ci/setup

setup-tests:
	@.ci/setup tests
