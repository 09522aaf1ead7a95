# make app    install and open the web app (no network needed but for the installation)
# make test   install and run all tests, the browser tests where there is a Chromium
# make lint   ruff and mypy
# make bench  the benchmarks: ratios against named rivals

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
APP_ARGS ?=
# Other people's steering and trainers, to test against. Without dependencies: they ask for transformers 4, numpy 1
# and GPUs.
ORACLES := steering-vectors==0.12.2 repeng==0.4.0 llamafactory==0.9.5 axolotl==0.19.0 sentence-transformers==6.2.0

.PHONY: app install test lint bench demo-report selection-report chromium clean

app: $(VENV)/.installed
	$(BIN)/basiscope app $(APP_ARGS)

install: $(VENV)/.installed

test: $(VENV)/.installed-dev chromium
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo-report: $(VENV)/.installed-dev
	$(BIN)/python -m core.demo.report --out docs

selection-report: $(VENV)/.installed-dev
	$(BIN)/python -m bench.worked_example --out docs

bench: $(VENV)/.installed-dev
	$(BIN)/python -m bench

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Basiscope needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV), once: some minutes without a word, and up to some gigabytes."
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) with what the tests need, once: some minutes without a word."
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps $(ORACLES)
	touch $@ $(VENV)/.installed

chromium:
	@command -v chromium > /dev/null || command -v google-chrome > /dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq && apt-get install -qq -y chromium; } || \
		echo "No Chromium: the browser tests will be skipped (apt-get install chromium)."

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
