# Two commands: `make train` and `make test`. `make help` lists the rest.
SHELL := bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install train test test-floors test-slow lint types bench bench-peers docs clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1	\2/' | expand -t 20

# Installed again only where the pinned versions have changed. pip compiles bytecode, which halves every later start.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("voxtile needs Python 3.11 or later; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@touch $@

install: .venv/installed  ## make .venv with the pinned versions

train: .venv/installed  ## train the default network on the default scenes
	$(BIN)/python train.py model=unet data=satellite

# Each process has half of the tests, and takes half of what the other has left when it is done, so that both end together.
test: .venv/installed-dev  ## the fast tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

# pip cannot resolve to the lowest versions; uv can. In an environment of its own, with other warnings than the pinned versions have.
test-floors:  ## the fast tests with the lowest versions that pyproject.toml allows
	test -d .venv-floors || $(PYTHON) -m venv .venv-floors
	.venv-floors/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-floors/bin/uv pip compile --quiet --resolution lowest-direct --extra test --extra zoo --extra torchgeo --extra slurm --extra onnx pyproject.toml --output-file .venv-floors/floors.txt
	.venv-floors/bin/uv pip install --quiet --python .venv-floors/bin/python --requirement .venv-floors/floors.txt
	PYTHONPATH="$(CURDIR)/src" .venv-floors/bin/python -m pytest -n 2 --dist worksteal -W default

test-slow: .venv/installed-dev  ## the slow tests
	$(BIN)/python -m pytest -m slow

lint: .venv/installed-dev  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev  ## mypy, strict
	$(BIN)/mypy

bench: .venv/installed-dev  ## benchmarks, as ratios to a peer or a floor in the same run
	for name in reading training predicting augment crf models reseg; do $(BIN)/python bench/$$name.py || exit 1; done

bench/peers/.venv/installed: bench/peers/requirements.txt
	$(PYTHON) -m venv bench/peers/.venv
	bench/peers/.venv/bin/python -m pip install --quiet --disable-pip-version-check -r bench/peers/requirements.txt
	@touch $@

bench-peers: bench/peers/.venv/installed  ## the environment of what the benchmarks compare with (TorchGeo, MONAI)

docs: .venv/installed-dev  ## check that every command and link in the docs works
	$(BIN)/python -m pytest tests/test_docs.py

clean:  ## remove what was built; runs and data stay
	rm -rf .venv .venv-floors bench/peers/.venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +
