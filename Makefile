# `make` prints what there is. Everything is built with one profile, so that what is tested is what runs.

CARGO ?= cargo
PROFILE := --release --locked
# The simulator wants a build with bugs that can be planted, so it is not among the other tests.
SIM := $(CARGO) test $(PROFILE) --features sim --test sim --
SEEDS ?= 1000
FROM ?= 1
SEED ?=
MINUTES ?= 10
TARGET ?=
SECONDS ?= 60
# For `make run`, e.g. ARGS="redis-conf-examples/single.conf --port 7000".
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run cluster test bench check clients sim mutations chaos soak fuzz setup setup-tests

help: ## Prints this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: setup ## Builds and starts a node on 127.0.0.1:6379, data in ./data (ARGS="file.conf --port 7000" to change that)
	$(CARGO) run $(PROFILE) --bin holdfast -- $(ARGS)

cluster: setup ## Builds and starts three nodes on 127.0.0.1:6379 to 6381, data in ./data-three-nodes/node-N, until Ctrl-C
	$(CARGO) build $(PROFILE) --bin holdfast
	redis-conf-examples/three-nodes/run.sh $(ARGS)

test: setup-tests check ## Checks, then every test, each in its short form (CRASH_WRITES=1000000 for the long crash test)
	$(CARGO) test $(PROFILE)
	$(SIM) --twice 50 --seconds 60
	$(SIM) --seeds 200 --seconds 120
	$(SIM) --mutations 300 --seconds 300

sim: setup ## A simulated cluster for SEEDS=n seeds of 600 s each (SEED=n repeats one, SIM_STORY=1 tells it)
	$(SIM) $(if $(SEED),--seed $(SEED),--seeds $(SEEDS) --from $(FROM))

mutations: setup ## Plants each known bug, which the simulator must find within 500 seeds
	$(SIM) --mutations

chaos: setup-tests ## Real processes under faults for MINUTES=n: kills, pauses, cuts, power losses, disks, clocks, flipped bits
	CHAOS_MINUTES=$(MINUTES) $(CARGO) test $(PROFILE) --test chaos -- --nocapture --test-threads 1

soak: setup-tests ## The long forms: hours of simulation, an hour of chaos, long histories, many flipped bits
	$(SIM) --seeds 10000 --from $(FROM)
	CHAOS_MINUTES=60 $(CARGO) test $(PROFILE) --test chaos -- --nocapture --test-threads 1
	CHECK_OPS=200000 FAILOVERS=50 SNAPSHOT_WRITES=1000000 $(CARGO) test $(PROFILE) --test cluster
	LOCKS_SECONDS=600 LOCKS_ZOMBIES=1000 LOCKS_EXPIRIES=100000 LOCKS_CYCLES=5 LOCKS_HANDOFFS=100000 $(CARGO) test $(PROFILE) --test locks -- --nocapture --test-threads 1
	QUEUES_MESSAGES=1000000 QUEUES_DEAD_SOCKETS=200 QUEUES_OVERRUNS=1000 QUEUES_REDRIVEN=100000 QUEUES_RETRIED=20000 QUEUES_TRANSACTIONS=20000 QUEUES_HANDOFFS=5000 $(CARGO) test $(PROFILE) --test queues -- --nocapture --test-threads 1
	CRASH_WRITES=1000000 BIT_FLIPS=3000 MODEL_SEQUENCES=100000 DIFFERENTIAL_CASES=5000 FUZZ_RUNS=1000000 $(CARGO) test $(PROFILE)

fuzz: setup ## Coverage-guided fuzzing of TARGET=name (all when none is named) for SECONDS=n each; wants cargo-fuzz
	tests/fuzz/run.sh "$(TARGET)" "$(SECONDS)"

bench: setup-tests ## Criterion benches, then redis-benchmark beside redis-server, as a table of ratios
	$(CARGO) bench --locked
	$(CARGO) build $(PROFILE) --bin holdfast
	benches/compare/run.sh

check: setup ## Formatting, clippy with warnings as errors, advisories and licences
	$(CARGO) fmt --check
	$(CARGO) clippy $(PROFILE) --all-targets --all-features -- -D warnings
	@if command -v cargo-deny >/dev/null 2>&1; then cargo deny --locked check; \
	else echo "cargo-deny is not there, so deny.toml was not checked; to have it: cargo install --locked cargo-deny"; fi

clients: setup ## Runs redis-py, node-redis and ioredis against a node of its own (wants pip, npm and a network)
	$(CARGO) build $(PROFILE) --bin holdfast
	tests/clients/run.sh

setup:
	@.ci/setup

setup-tests:
	@.ci/setup tests
