# `make help` lists the targets. Everything lives in one virtual environment, .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# An index to take torch from, in place of the choice that `install` makes.
TORCH_INDEX ?=
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
# More arguments for pytest: make test-unit ARGS='-k specs'
ARGS ?=
# A folder for the JUnit reports of the two parts of the tests, unit.xml and rest.xml.
REPORTS ?=
# Two parts: the unit tests, as many at once as there are cores; what starts clusters, one after the other.
UNIT := $(wildcard tests/unit tests/contracts)
REST := $(wildcard tests/integration tests/e2e)
AT_ONCE := -n auto --dist worksteal
# $(call part,NAME,ARGUMENTS): one of them; $(call parts,UNIT'S,REST'S): both, and ARGS may select no test
# (pytest's exit code 5) in one.
part = $(BIN)/python -m pytest -q $(2) $(if $(REPORTS),--junitxml='$(REPORTS)/$(1).xml') $(ARGS)
parts = none=; $(call part,unit,$(AT_ONCE) $(1)) || { none=$$?; [ $$none = 5 ] || exit $$none; }; \
  $(call part,rest,$(2)) || { code=$$?; [ $$code = 5 ] && [ -z "$$none" ] || exit $$code; }
NVIDIA_DRIVER := $(wildcard /proc/driver/nvidia)$(shell command -v nvidia-smi)
EVERY := -m $(if $(NVIDIA_DRIVER),'','not gpu')
LINTED := platform/eagleray jobs tests examples benchmarks $(wildcard serve_apps/*.py)

.PHONY: help install venv demo demo-elastic test test-unit test-all bench-loop bench-generation bench-codecs \
  bench-sdk bench-compression bench-compression-full bench-elastic bench-elastic-full bench-serving \
  bench-serving-full lint format docs constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED)  ## make .venv and install Eagleray with everything it needs

venv: install

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Eagleray needs Python 3.11 or newer, and $(PYTHON) is not: install one (apt install python3), or name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module; install it with: sudo apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv .venv

# torch first and by itself, so that a CPU build is taken where there is no GPU; `torch~=2.13.0` then keeps it.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@index='$(TORCH_INDEX)'; \
	if [ -z "$$index" ] && [ -z '$(NVIDIA_DRIVER)' ] && $(BIN)/python -c \
	  'import urllib.request as r; r.urlopen("$(TORCH_CPU_INDEX)/torch/", timeout=3).read(1)' 2>/dev/null; \
	then index='$(TORCH_CPU_INDEX)'; fi; \
	echo "Installing torch from $${index:-the default index}, then the rest: 2.5 GB on disk, 1 to 5 minutes without a word the first time"; \
	[ -n "$$index" ] || [ -n '$(NVIDIA_DRIVER)' ] || echo "(the index with torch's CPU builds does not answer: what comes may be made for GPUs, and larger)"; \
	fail() { command -v cc >/dev/null || echo "There is no C compiler; if a package wanted one: sudo apt install build-essential python3-dev" >&2; exit 1; }; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $${index:+--index-url "$$index"} 'torch~=2.13.0' || fail; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' || fail
	@touch $@

demo: install  ## the main job on real input, start to end (KEEP=1 leaves the cluster up)
	@KEEP='$(KEEP)' $(BIN)/python examples/demo

demo-elastic: install  ## training gives nodes to traffic and takes them again (KEEP=1 leaves the cluster up)
	@KEEP='$(KEEP)' $(BIN)/python examples/demo/elastic.py

test: install  ## unit, integration and light end-to-end tests
	@$(call parts,$(UNIT),$(REST))

test-unit: install  ## the unit tests alone, on all cores
	@$(call part,unit,$(AT_ONCE) $(UNIT))

test-all: install  ## every test, the slow ones too (and those for a GPU where there is one)
	@$(call parts,$(UNIT) $(EVERY),$(REST) $(wildcard tests/gpu) $(EVERY))

bench-loop: install  ## one training step in our loop against bare torch DDP
	@$(BIN)/python benchmarks/loop.py

bench-generation: install  ## tokens per second of the GPT: its cache, and 16 texts at once
	@$(BIN)/python benchmarks/generation.py

bench-codecs: install  ## GB/s of the gradient codecs on one core, next to memcpy
	@$(BIN)/python benchmarks/codecs.py

bench-sdk: install  ## one prediction through the SDK against httpx by hand
	@$(BIN)/python benchmarks/sdk.py

bench-compression: install  ## gradient compression against DDP and torch's hooks on shaped links (root, 25 min)
	@$(BIN)/python benchmarks/compression $(ARGS)

bench-compression-full: bench-compression  ## that, and trainings to their end with every scheme (an hour more)
	@$(BIN)/python benchmarks/compression --convergence $(ARGS)

bench-elastic: install  ## resizes, losses and the ledger on a local cluster, against stock Ray (25 min)
	@$(BIN)/python benchmarks/elastic $(ARGS)

bench-elastic-full: install  ## that, and random schedules and a fault storm (45 min more)
	@$(BIN)/python benchmarks/elastic --full $(ARGS)

bench-serving: install  ## requests, batches, overload and streams, beside bare uvicorn and five peers (25 min)
	@$(BIN)/python benchmarks/serving $(ARGS)

bench-serving-full: install  ## that, and scaling, failures and a soak (55 min more)
	@$(BIN)/python benchmarks/serving --full $(ARGS)

lint: install  ## ruff, basedpyright, and the contract of the rooms
	@$(BIN)/ruff check $(LINTED)
	@$(BIN)/ruff format --check $(LINTED)
	@$(BIN)/basedpyright
	@$(BIN)/lint-imports --no-cache

format: install  ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix $(LINTED)
	@$(BIN)/ruff format $(LINTED)

docs: install  ## docs/specs.md and docs/schemas/ from the spec models
	@$(BIN)/python -m eagleray.specs.reference docs

constraints: install  ## write the installed set into constraints.txt (after `make test-all` passed)
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude eagleray | sed -E 's/\+[a-z0-9.]+$$//'; } > .venv/constraints.txt
	@mv .venv/constraints.txt constraints.txt

clean:  ## remove the environment and every cache (run directories stay)
	rm -rf .venv build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
