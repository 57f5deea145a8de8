# `make demo` and `make test` do all the set-up they need.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: venv demo test test-fast test-long lint bench gpu-check clean

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

demo: venv
	$(BIN)/python -m flows.demo demo

# A file of tests stays in one process, as its tests share scenes.
test: lint
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

test-fast: venv
	$(BIN)/python -m pytest -m "not slow and not long"

test-long: venv
	$(BIN)/python -m pytest -m long

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

bench: venv
	$(BIN)/smartsplat bench engine

# On a machine with a CUDA device; torch, Triton, numpy and numba are all it needs (docs/gpu-checks.md).
gpu-check:
	$(PYTHON) -m tests.benchmarks.gpu --output build/gpu

clean:
	rm -rf .venv demo
