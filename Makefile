# `make` lists the targets. Each sets up what it needs in a virtual environment of its own, .venv-<Python version>.

PYTHON ?= python3
SWEEP ?= experiments/quick.py
RESULTS ?= results/quick
PYTEST_ARGS ?=
BENCH_ARGS ?=
KILLS ?= 200
SEED ?= 0

VERSION := $(shell '$(PYTHON)' -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv-$(VERSION)
BIN := $(VENV)/bin
PEERS := .venv-peers-$(VERSION)
# Written last, so that an interrupted installation starts again.
INSTALLED := $(VENV)/.installed
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
PACKAGES := analysis envs experiments rlsuite
# What every learner has to show, a small program or two each.
CONTRACTS := tests/test_algorithms.py tests/test_truncation_pairs.py
# What `make test` leaves to other targets.
LATER := not slow and not exhaustive and not browser
# Most programs of the tests run for less than a second: compiled in half the time.
QUICK_COMPILES := XLA_FLAGS='--xla_backend_optimization_level=0'

# Those that have changed since they last passed, with ALL=1 all of them.
SLOW = -n 2 --dist loadgroup -m slow --slow-contracts $(if $(ALL),all,changed)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo sweep datasets report test browser learning check exhaustive soak lint pages docs bench clean

help:
	@echo 'make setup      create the virtual environment (every target below does so by itself)'
	@echo 'make demo       a first look: train and report a small comparison, in half a minute'
	@echo 'make sweep      train and compare; SWEEP=$(SWEEP) by default'
	@echo 'make datasets   train agents and record the datasets of experiments/offline.py'
	@echo 'make report     statistics, figures and page of RESULTS=$(RESULTS)'
	@echo 'make test       the tests; PYTEST_ARGS="-k ppo" to choose'
	@echo 'make browser    the tests of the report in Chromium, which it installs as root on Debian'
	@echo 'make learning   the slow tests that have changed since they last passed: train to known scores; ALL=1 for all'
	@echo 'make check      train small cells and compare with the reference curves of earlier versions'
	@echo 'make exhaustive the tests of environments that compile for long, and of a real Ray cluster'
	@echo 'make soak       kill a sweep KILLS=$(KILLS) times at moments of SEED=$(SEED), resume, compare every row'
	@echo 'make lint       ruff (lint and format) and mypy'
	@echo 'make pages      write what docs/algorithms/ takes from the modules of the methods'
	@echo 'make docs       the documentation site, in site/'
	@echo 'make bench      speed of this suite and of its peers; BENCH_ARGS="ppo sac --runs 1 16" to choose'
	@echo 'make clean      remove environments, caches and build outputs; results/ stays'
	@echo
	@echo 'Another Python (3.11 or newer): make test PYTHON=/path/to/python3.12'

setup: $(INSTALLED)
	@echo '$(VENV) is ready; to use it in this shell: . $(BIN)/activate'

$(INSTALLED): pyproject.toml constraints.txt
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "rlsuite needs Python 3.11 or newer, but '$(PYTHON)' is $(or $(VERSION),not a Python that runs);" \
	        "name one: make $(firstword $(MAKECMDGOALS)) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo 'setting up $(VENV) (about a minute, once) ...'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || '$(PYTHON)' -m venv --clear $(VENV)
	@# The pinned setuptools goes first and builds without isolation, which would fetch an unpinned one.
	@# Quiet; what fails is tried once more, with all that pip has to say.
	@$(INSTALL) -qq setuptools wheel || $(INSTALL) setuptools wheel
	@$(INSTALL) -qq --no-build-isolation -e '.[dev]' || $(INSTALL) --no-build-isolation -e '.[dev]'
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/rlsuite demo

sweep: $(INSTALLED)
	@echo 'sweeping $(SWEEP) ...'
	@$(BIN)/rlsuite sweep '$(SWEEP)'

datasets: $(INSTALLED)
	@echo 'making datasets ...'
	@for environment in gymnax/Pendulum-v1 brax/hopper/spring; do $(BIN)/rlsuite collect $$environment || exit; done

report: $(INSTALLED)
	@echo 'reporting on $(RESULTS) ...'
	@$(BIN)/rlsuite report '$(RESULTS)'

test: $(INSTALLED)
	@echo 'testing on Python $(VERSION); the report in a real browser is left to make browser ...'
	@$(QUICK_COMPILES) $(BIN)/python -m pytest -n 2 --dist loadgroup -m '$(LATER)' $(PYTEST_ARGS)

browser: $(INSTALLED)
	@.ci/chromium
	@echo 'testing the report in Chromium ...'
	@$(BIN)/python -m pytest -m browser $(PYTEST_ARGS)

learning: $(INSTALLED)
	@echo 'training to known scores on Python $(VERSION) ...'
	@$(QUICK_COMPILES) $(BIN)/python -m pytest $(SLOW) $(CONTRACTS) $(PYTEST_ARGS)
	@$(BIN)/python -m pytest $(SLOW) $(addprefix --ignore=,$(CONTRACTS)) $(PYTEST_ARGS)

check: $(INSTALLED)
	@echo 'comparing with reference curves ...'
	@$(BIN)/rlsuite check

exhaustive: $(INSTALLED)
	@echo 'testing every environment on Python $(VERSION) ...'
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m exhaustive $(PYTEST_ARGS)

soak: $(INSTALLED)
	@echo 'killing and resuming ...'
	@$(BIN)/python tests/soak.py --kills $(KILLS) --seed $(SEED)

lint: $(INSTALLED)
	@echo 'checking style and types ...'
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

pages: $(INSTALLED)
	@echo 'writing the pages of the methods ...'
	@$(BIN)/python benchmarks/method_pages.py

docs: $(INSTALLED)
	@echo 'building the documentation ...'
	@$(BIN)/python benchmarks/documentation.py

bench: $(INSTALLED) $(PEERS)/.installed
	@echo 'measuring this suite beside its peers (about an hour) ...'
	@$(BIN)/python benchmarks/peers/compare.py --python $(PEERS)/bin/python $(BENCH_ARGS)

# Apart from the suite's: the peers want other versions of what both use.
$(PEERS)/.installed: benchmarks/peers/constraints.txt
	@echo 'setting up $(PEERS) (two minutes and 6 GB, once) ...'
	@'$(PYTHON)' -m venv --clear $(PEERS)
	@$(PEERS)/bin/python -m pip install --disable-pip-version-check -qq -c $< rejax gymnax==0.0.9 six \
	    stable-baselines3 sbx-rl torch scipy
	@touch $@

clean:
	@echo 'removing environments, caches and build outputs; results/ stays'
	@rm -rf .venv-* build *.egg-info .pytest_cache .mypy_cache .ruff_cache site
	@find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
