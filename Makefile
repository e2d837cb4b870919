# The commands of this repository. Cargo always builds in release mode: program, tests and demo share the compiled
# dependencies, and voxel code without optimisation is too slow for the tests.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test check build setup bench-gpu picture

help: ## Show the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 12

demo: build ## Build, screen a small synthetic cohort and query the results
	@scripts/demo.sh

# --tests: without it, cargo would also link every example. The tests include and run them.
test: setup ## Run all tests
	NEUROSIEVE_PYTHON=$$(scripts/python.sh) && NEUROSIEVE_AZURITE=$$(tests/servers/azurite.sh) && \
		export NEUROSIEVE_PYTHON NEUROSIEVE_AZURITE && cargo test --release --locked --tests
	$$(scripts/python.sh) -m unittest discover --start-directory tests/soak
	cargo test --release --locked --doc
	NEUROSIEVE_PROGRAM=$$(realpath "$${CARGO_TARGET_DIR:-target}")/release/neurosieve && export NEUROSIEVE_PROGRAM && \
		cargo test --release --locked --package store-contract

check: setup ## Check format, lints, docs, structure and dependencies
	cargo fmt --check
	cargo clippy --release --locked --all-targets -- -D warnings
	cargo clippy --release --locked --all-targets --package store-contract -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --release --locked --no-deps --lib
	scripts/one_copy.sh
	scripts/structure.py
	@if cargo deny --version >/dev/null 2>&1; then \
		cargo deny --locked check licenses bans sources; \
	else \
		echo 'cargo-deny is not installed: licences are not checked (cargo install cargo-deny)'; \
	fi

build: setup ## Build the program, target/release/neurosieve
	cargo build --release --locked

picture: demo ## Draw the README's picture, docs/images/finding.png, from the demo's tables
	scripts/picture.sh

bench-gpu: build ## Pack the folder that measures neurosieve on a machine with a GPU
	benches/gpu/pack.sh

setup: ## Fetch libtorch (540 MB) into the cache folder, once
	@command -v cargo >/dev/null || { echo 'cargo is missing: install Rust 1.95 or newer with rustup' >&2; exit 1; }
	@echo '#include <string>' | $${CXX:-c++} -x c++ -std=c++17 -fsyntax-only - || { echo 'A C++ compiler is needed for' \
		'the libtorch bindings: install one (Debian, Ubuntu: apt install g++), or set CXX' >&2; exit 1; }
	@scripts/libtorch.sh
