# Plurality's commands; `make` alone lists them.
#
# Everything is built in one profile, release: torch-sys compiles one C++ file of 19,000 lines for some four minutes, and a
# second profile would compile it a second time. Cargo.toml keeps overflow checks on in it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# More words for the coordinator: make run ARGS='--seed 7 --out results/seven'
ARGS ?=

# Which clusters to simulate: so many seeds, from this one on.
SEEDS ?= 1000
FROM ?= 0

# How long to soak.
MINUTES ?= 20

# LibTorch: your own if LIBTORCH names it, else the one that `make setup` fetches. Absolute, because cargo runs build
# scripts elsewhere.
ifeq ($(strip $(LIBTORCH)),)
override LIBTORCH := $(CURDIR)/.libtorch
endif
override LIBTORCH := $(abspath $(LIBTORCH))
export LIBTORCH

# Where cargo puts what it builds.
BUILT := $(or $(CARGO_TARGET_DIR),target)/release

# One feature set for every command below, for the same reason as one profile.
CARGO_FLAGS := --release --workspace --features plurality-worker/torch
BUF := .tools/buf-1.75.0

.PHONY: help setup build run try test sim lint bench bench-control soak dist images clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## check the tools and fetch LibTorch into .libtorch/ (once; honours an existing LIBTORCH)
	@command -v cargo >/dev/null || { echo "setup: cargo is missing: install Rust with rustup, see README.md" >&2; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null || { echo "setup: a C++ compiler is missing: install one (Debian, Ubuntu: apt-get install g++)" >&2; exit 1; }
	@command -v python3 >/dev/null || { echo "setup: python3 is missing: install it with pip (Debian, Ubuntu: apt-get install python3-pip)" >&2; exit 1; }
	@scripts/fetch-libtorch

build: setup ## build coordinator, worker and worker-trainer into target/release/
	@cargo build $(CARGO_FLAGS)

run: build ## train five networks on this machine and report their vote (ARGS='...' for more flags)
	@$(BUILT)/coordinator --ensemble 5 --local-workers auto $(ARGS)

try: build ## the same with the smoke recipe: a taste in about a minute
	@$(BUILT)/coordinator --ensemble 5 --local-workers auto --recipe smoke $(ARGS)

test: build ## run all tests, doctests too
	@cargo nextest --version >/dev/null 2>&1 || cargo install cargo-nextest --version 0.9.143 --locked
	@cargo test $(CARGO_FLAGS) --doc --quiet
	@cargo nextest run $(CARGO_FLAGS) --test-threads $$((2 * $$(nproc)))

sim: setup ## simulate clusters through random faults (SEEDS=10000 FROM=0; ARGS=--trace prints what happens)
	@cargo build $(CARGO_FLAGS) --bin simulation
	@$(BUILT)/simulation --seeds $(SEEDS) --from $(FROM) $(ARGS)

lint: setup $(BUF) ## formatting, clippy, docs, the wire contract, scripts, licences
	@cargo fmt --all --check
	@scripts/check-scripts
	@$(BUF)/bin/buf lint
	@cargo clippy $(CARGO_FLAGS) --all-targets -- -D warnings
	@RUSTDOCFLAGS='-D warnings' cargo doc $(CARGO_FLAGS) --no-deps
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --workspace --log-level error check licenses bans sources; \
	 else echo "lint: cargo-deny is not installed, licences and bans were not checked (cargo install cargo-deny --locked)"; fi

# A renamed folder, so that an install that was cut off is not taken for a whole one.
$(BUF):
	@rm -rf $(BUF).partial && PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check \
	    --target $(BUF).partial buf-bin==1.75.0
	@mv $(BUF).partial $(BUF)

bench: build ## measure speed, scaling, start-up and memory (ARGS=throughput|trainer|scaling|ensemble|verify: one of them)
	@benches/run $(ARGS)

bench-control: build ## measure a coordinator that has thousands of workers (docs/results/control.md)
	@benches/control.py $(ARGS)

soak: build ## random kills among 200 synthetic workers (MINUTES=20): does anything leak? (docs/results/soak.md)
	@benches/soak.py --minutes $(MINUTES) $(ARGS)

dist: build ## collect what the images are made of into dist/
	@scripts/collect-dist

images: dist ## build the container images from dist/ (deploy/compose.yaml uses them)
	@scripts/build-images

clean: ## remove what was built; keeps LibTorch, states and results
	@cargo clean
	@rm -rf dist .tools
