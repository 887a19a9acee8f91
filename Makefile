# Concordat. `make help` lists the targets. Caches live outside the checkout, so that a second run is fast.
SHELL := /bin/bash
.DEFAULT_GOAL := help

export CONCORDAT_CACHE ?= $(HOME)/.cache/concordat
export CARGO_TARGET_DIR ?= $(CONCORDAT_CACHE)/target
BIN := $(CARGO_TARGET_DIR)/debug
RELEASE := $(CARGO_TARGET_DIR)/release
# What is in images is linked statically, and so for a named target: what runs while it is built is not.
IMAGE_TARGET := $(shell uname -m)-unknown-linux-gnu
IMAGES := $(CARGO_TARGET_DIR)/images
IMAGE_BINARIES ?= $(IMAGES)/binaries
VERSION := $(shell sed -nE 's/^version = "(.*)"$$/\1/p' Cargo.toml)
PACKAGES := gcc libc6-dev protobuf-compiler libprotobuf-dev
# Where a protoc of any origin has Google's own types; Debian packs them by themselves.
TYPES := ../include/google/protobuf/descriptor.proto

.PHONY: help
help: ## Says what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: tools
tools: ## Installs what builds need and Debian has: a C compiler, protoc and the types it knows
	@command -v cc >/dev/null && test -e "$$(dirname "$$(command -v protoc)")/$(TYPES)" || \
	  { apt-get update -q && apt-get install -qy --no-install-recommends $(PACKAGES); }

.PHONY: demo
demo: tools ## Builds everything, opens the bank of examples/ and checks every sum
	cargo build --locked -p concordat -p concordat-bank
	$(BIN)/concordat-bank demo

.PHONY: check
check: tools ## Formatting and lints, warnings denied
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --features concordat-tests/node,concordat-tests/peers -- -D warnings

.PHONY: test
test: check alerts kubernetes node cert-manager images dapr strace ## Everything, as root: lints, unit, property, model, differential, process, API-server and node tests
	cargo test --locked --workspace --no-run
	$(NODE_TESTS) --no-run
	$(MAKE) --no-print-directory --keep-going --jobs=2 tests-anywhere tests-on-node

# The tests on the node wait more than they work, and so run beside the others; what they said is shown at their end.
# rustdoc would complain that it may not share make's jobs.
NODE_TESTS := MAKEFLAGS= cargo test --locked --workspace --features concordat-tests/node --test node
.PHONY: tests-anywhere tests-on-node
tests-anywhere:
	MAKEFLAGS= cargo test --locked --workspace --no-fail-fast
tests-on-node:
	@said=$$(mktemp); $(NODE_TESTS) >$$said 2>&1; result=$$?; cat $$said; rm $$said; exit $$result

.PHONY: kubernetes
kubernetes: ## Builds the kube-apiserver and the helm that tests run (once, from Go modules)
	tests/kubernetes/build
	tests/kubernetes/build helm

.PHONY: binaries
binaries: tools
	cargo build --locked --profile image --target $(IMAGE_TARGET) -p concordat-operator -p concordat-sidecar -p concordat-bank \
	  --config 'target.$(IMAGE_TARGET).rustflags = ["-C", "target-feature=+crt-static"]'
	mkdir -p $(IMAGE_BINARIES)
	cd $(CARGO_TARGET_DIR)/$(IMAGE_TARGET)/image && cp -u concordat-operator concordat-sidecar concordat-bank $(IMAGE_BINARIES)

# The sidecar is there under another name, too, for tests that give a pod another sidecar.
.PHONY: images
images: binaries ## Makes the images of operator, sidecar and bank: OCI archives in images/ of the target folder
	tests/kubernetes/image Containerfile operator $(IMAGE_BINARIES) $(IMAGES)/operator.tar ghcr.io/concordat-dev/operator:$(VERSION)
	tests/kubernetes/image Containerfile sidecar $(IMAGE_BINARIES) $(IMAGES)/sidecar.tar ghcr.io/concordat-dev/sidecar:$(VERSION)
	tests/kubernetes/image Containerfile sidecar $(IMAGE_BINARIES) $(IMAGES)/sidecar-other.tar concordat.test/sidecar:$(VERSION)
	tests/kubernetes/image tests/kubernetes/Containerfile bank $(IMAGE_BINARIES) $(IMAGES)/bank.tar concordat.test/bank:$(VERSION)

.PHONY: node
node: tools ## Installs and builds what a Kubernetes node of tests takes (once)
	tests/kubernetes/node build

.PHONY: cert-manager
cert-manager: ## Builds the cert-manager that tests install on the node (once, from Go modules)
	tests/kubernetes/build cert-manager

.PHONY: dapr
dapr: ## Installs Dapr's own SDKs that tests run (once, from npm and PyPI)
	tests/dapr/install

.PHONY: strace
strace: ## Installs strace, by which tests slow etcd's disk
	@command -v strace >/dev/null || { apt-get update -q && apt-get install -qy --no-install-recommends strace; }

.PHONY: alerts
alerts: ## Tells when each alert of the chart comes and when not, by Prometheus' own promtool
	tool=$$(tests/prometheus/install)/promtool && \
	  $$tool check rules helm/concordat/rules/concordat.yaml && $$tool test rules tests/tests/chart/alerts.yaml

.PHONY: soak-locks
soak-locks: tools strace ## Locks under every fault for SOAK_GRANTS grants, 100000 unless set (2000 in `make test`); SOAK_SEED repeats a run's choices
	SOAK_GRANTS=$${SOAK_GRANTS:-100000} \
	  cargo test --locked --workspace --test lock locks_keep_what_they_promise_whatever_breaks -- --nocapture

.PHONY: fuzz
fuzz: tools ## The fuzz targets for longer: FUZZ_SECONDS each, 60 unless set
	BOLERO_RANDOM_TEST_TIME_MS=$$(( $${FUZZ_SECONDS:-60} * 1000 )) BOLERO_RANDOM_ITERATIONS=1000000000 \
	  cargo test --locked --release -p concordat-store -p concordat-sidecar -p concordat-crds -p concordat-operator -- fuzz panics --test-threads 2

.PHONY: bench
bench: tools ## Measures the sidecars beside etcd's own lock service and plain puts; writes docs/benchmarks.md
	cargo build --locked --release -p concordat-sidecar --bin concordat-sidecar
	cargo build --locked --release -p concordat-tests --bin bench
	$(RELEASE)/bench --output docs/benchmarks.md

.PHONY: peers
peers: ## Installs the servers that locks are measured beside: ZooKeeper and Redis
	@command -v java redis-server >/dev/null && test -e /usr/share/java/zookeeper.jar || \
	  { apt-get update -q && apt-get install -qy --no-install-recommends zookeeper default-jre-headless redis-server; }

.PHONY: bench-locks
bench-locks: tools peers ## Measures locks beside etcd's lock service, ZooKeeper and Redis; writes docs/benchmarks-locks.md
	cargo build --locked --release -p concordat-sidecar --bin concordat-sidecar
	cargo build --locked --release -p concordat-tests --features peers --bin bench-locks
	$(RELEASE)/bench-locks --output docs/benchmarks-locks.md

.PHONY: crds
crds: tools ## Writes crds/*.yaml and the chart's copies anew from the Rust types
	cargo run --locked -p concordat-crds --bin crdgen

.PHONY: clean
clean: ## Removes what was built (the cached Kubernetes stays; remove $(CONCORDAT_CACHE) for that)
	cargo clean
