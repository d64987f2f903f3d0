# Everything here also runs by hand: each target is one or two ordinary commands.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help quickstart test test-all check bench studio chat docs clean

help:
	@echo "make quickstart   raw text to a served model (ARGS='~/notes --budget 15m')"
	@echo "make test         the tests but the slow ones; make test-all: all of them"
	@echo "make check        format, lint, types, import layers, file sizes"
	@echo "make bench        the benchmarks"
	@echo "make studio       pages that show what tokenizers and models do (ARGS='smollm2-135m runs/tokenizer')"
	@echo "make chat         a chat page with SmolLM2-135M"
	@echo "make docs         the documentation, into site/"
	@echo "make clean        remove what was built, and the virtual environment"

quickstart: $(VENV)/.installed
	$(BIN)/lmworks quickstart $(ARGS)

test: $(VENV)/.installed-dev
	@sh tools/install_browser.sh
	@sh tools/install_redis.sh
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 8 --dist loadfile $(ARGS)

test-all: $(VENV)/.installed-dev
	@sh tools/install_browser.sh
	@sh tools/install_redis.sh
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/sizes.py

bench: $(VENV)/.installed-dev
	@set -e; for script in $$(grep -ls __main__ bench/*.py); do \
	  echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done

studio: $(VENV)/.installed
	$(BIN)/lmworks studio --open $(ARGS)

chat: $(VENV)/.installed
	$(BIN)/lmworks serve smollm2-135m --open $(ARGS)

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || \
	  { rm -rf $(VENV); echo "no virtual environment: on Debian, apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing lmworks into $(VENV); torch is the large part"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "installing lmworks and what its tests need into $(VENV)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests bench tools -name __pycache__ -type d -prune -exec rm -rf {} +
