# Everything a person does with this project. `make help` lists it; the names are those of the package in Cargo.toml.

NAME    := $(shell sed -n 's/^name = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
VERSION := $(shell git describe --always --dirty --tags 2>/dev/null || sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

# queries are checked against the data in .sqlx/, so that a build needs no database; `make prepare` renews it
export SQLX_OFFLINE ?= true

.DEFAULT_GOAL := help
.PHONY: help run test test-quiet lint fmt prepare clean

help: ## this list
	@scripts/help $(MAKEFILE_LIST)

run: ## PostgreSQL, a gRPC peer and the service, until Ctrl-C
	@scripts/with-postgres --keep scripts/run

test: ## every test: the real binary, a real PostgreSQL, a real gRPC peer, real signals
	@scripts/with-postgres cargo test --locked -- $(addprefix --skip ,$(NEED_QUIET) the_battery_costs)

# they measure how fast the machine is, so nothing else may run on it: `make test-quiet` does that
NEED_QUIET := at_twice_the_load within_50_ms_at_p99 within_100_ms_at_p99

test-quiet: ## the tests that need the machine to themselves, which `make test` leaves out
	cargo build --locked --examples
	@scripts/with-postgres cargo test --locked -- $(NEED_QUIET)

lint: ## formatting, clippy, licences and sources of the dependencies, shell scripts, the queries' data
	cargo fmt --check
	cargo clippy --locked --all-targets --all-features -- --deny warnings
	cargo clippy --locked --all-targets --no-default-features -- --deny warnings
	@scripts/if-installed cargo-deny cargo deny --all-features check bans licenses sources
	@scripts/if-installed shellcheck shellcheck --external-sources $(wildcard scripts/* .ci/run)
	@scripts/with-postgres scripts/sqlx-data --check

fmt: ## format the code
	cargo fmt

prepare: ## renew .sqlx/ after a change of a query or a migration
	@scripts/with-postgres scripts/sqlx-data

clean: ## remove what was built and the database of `make run`
	cargo clean
	@scripts/with-postgres --clean

# --- The image ------------------------------------------------------------------------------------------------------

.PHONY: docker catalog-image smoke

# each may be given: make docker IMAGE=registry.example.com/shop:1.2.3 FEATURES=docs
IMAGE         ?= $(NAME):$(VERSION:v%=%)
CATALOG_IMAGE ?= $(NAME)-catalog:$(VERSION:v%=%)
FEATURES      ?=
export IMAGE CATALOG_IMAGE FEATURES

docker: ## the container image, named after the package and the git version (FEATURES=docs for Swagger UI)
	@scripts/image service "$(IMAGE)" "$(NAME)" "$(VERSION)"

catalog-image: ## the gRPC peer as an image, for `make smoke` and local clusters
	@scripts/image catalog "$(CATALOG_IMAGE)" "$(NAME)-catalog" "$(VERSION)"

smoke: docker catalog-image ## run the image read-only, unprivileged and in 32 MiB, stop it, and look at how it ended
	@scripts/smoke /v1/orders '{"sku": "SKU-1", "quantity": 1}'

# --- The example under load, and on bad days ------------------------------------------------------------------------

.PHONY: battery bench chaos e2e fuzz rollout-local

# what brings an image into the cluster, what applies a folder to it, and where its port 30080 is reached from here
IMAGE_LOAD    ?= kind load docker-image
KUBE_APPLY    ?= kubectl apply -k
ADDRESS       ?= 127.0.0.1:30080
export IMAGE_LOAD KUBE_APPLY ADDRESS

battery: ## SECONDS=60: every known way to hurt it at once, while well-behaved clients lose nothing; release build
	@BATTERY_SECONDS="$(or $(SECONDS),60)" scripts/with-postgres \
	  cargo test --locked --release --test hurt -- --nocapture the_battery_costs

bench: ## ROWS="cached idle": what requests, connections and an idle process cost, beside stock parts; docs/benchmarks.md
	@scripts/with-postgres scripts/bench $(ROWS)

chaos: ## SECONDS=600 SEED=1: faults at random for as long as told; no order is lost, no healthy replica is late
	cargo build --locked --example catalog
	@CHAOS_SECONDS="$(SECONDS)" CHAOS_SEED="$(SEED)" scripts/with-postgres cargo test --locked --test faults -- chaos --nocapture

fuzz: ## SECONDS=60: settings, pages, keys and bodies that a fuzzer makes up; needs nightly Rust and cargo-fuzz
	@cd fuzz && for target in fuzz_targets/*.rs; do \
	  cargo +nightly fuzz run "$$(basename "$$target" .rs)" -- -max_total_time=$(or $(SECONDS),60) || exit 1; \
	done

e2e: docker catalog-image ## on a cluster, under load: restarts, scaling, deleted pods, a rotated password, no database
	@scripts/e2e

rollout-local: ## 128 clients, two instances behind a TCP balancer, one of them stopped: none of 100,000 requests is lost
	cargo build --locked --release --bin service --example catalog --example rollout
	@scripts/with-postgres target/release/examples/rollout local

# --- The template's own: a project that is made of it has nothing of this ---------------------------------------------

.PHONY: rename template-test twins

rename: ## NAME=billing-api: make this repository a project of that name
	@scripts/rename "$(if $(filter command,$(origin NAME)),$(NAME))"

template-test: ## make projects of the template, build and test them
	@scripts/template-test

twins: ## carry what has changed in a file over to its twin (*.liquid)
	@scripts/template-test mend
