# Everything runs inside .venv, which is made on first use; nothing is installed outside it.
#   make demo ARGS="--seed 3"        arguments for the command
#   make test ARGS="-k gibbs -x"     arguments for pytest
#   make test PYTHON=/path/python3   the interpreter that makes .venv

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test bench lint types docs clean check-python

VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
CANDIDATES := $(or $(PYTHON),python3.12 python3.13 python3.14 python3 python)
IS_RECENT := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))

help:
	@echo "make demo    train, sample and compare on the digits; writes runs/compare-001"
	@echo "make test    run the whole test suite"
	@echo "make bench   measure against peers and floors; writes runs/bench-001"
	@echo "make lint    check style and format (ruff)"
	@echo "make types   check types (mypy)"
	@echo "make docs    build the documentation into docs/_build/html"
	@echo "make clean   remove .venv, caches and build outputs (runs/ is kept)"
	@echo
	@echo "Options: ARGS=\"...\" for demo, test and bench, PYTHON=/path/to/python3.12, VENV=folder"

demo: $(VENV)/.installed-base
	$(BIN)/pgm-energy compare $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(ARGS)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) build dist docs/_build .hypothesis .jax_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A candidate counts when it runs: a version manager may have a launcher for a Python that is not there.
check-python:
	@for candidate in $(CANDIDATES); do \
	  if "$$candidate" -c '$(IS_RECENT)' >/dev/null 2>&1; then exit 0; fi; \
	done; \
	echo "error: Python 3.12 or newer (with venv) is needed, tried: $(CANDIDATES); install it, or name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	exit 1

# pip is the last thing that goes into a new environment, so a half-made one is made again.
$(BIN)/pip: | check-python
	@for candidate in $(CANDIDATES); do \
	  if "$$candidate" -c '$(IS_RECENT)' >/dev/null 2>&1; then \
	    echo "making $(VENV) with $$("$$candidate" --version)"; \
	    exec "$$candidate" -m venv "$(VENV)"; \
	  fi; \
	done

# A Python that was asked for by name is checked even where .venv exists already.
$(VENV)/.installed-base $(VENV)/.installed-test $(VENV)/.installed-dev $(VENV)/.installed-docs $(VENV)/.installed-bench: \
	  pyproject.toml | $(BIN)/pip $(if $(PYTHON),check-python)

$(VENV)/.installed-base:
	@echo "installing pgm-energy into $(VENV) (minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-test $(VENV)/.installed-dev $(VENV)/.installed-docs $(VENV)/.installed-bench: $(VENV)/.installed-%:
	@echo "installing pgm-energy[$*] into $(VENV) (minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@
