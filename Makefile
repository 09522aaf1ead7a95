# make app          install and open the web app (no network needed but for the installation)
# make test         install and run all tests, the browser tests where there is a Chromium
# make lint         ruff and mypy
# make bench        the benchmarks: ratios against named rivals
# make constraints  write constraints.txt anew: the exact versions that all of the above install
# make faults       kills, full disks, flipped bits and mutated inputs, all of them (an hour)
# make test-newest  all tests with what the package index has today
# make test-oldest  all tests with the oldest versions that pyproject.toml allows

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
APP_ARGS ?=
COMPILE = $(BIN)/uv pip compile pyproject.toml --quiet --no-header --no-annotate
# Other people's steering and trainers, to test against. Without dependencies: they ask for transformers 4, numpy 1
# and GPUs.
ORACLES := steering-vectors==0.12.2 repeng==0.4.0 llamafactory==0.9.5 axolotl==0.19.0 sentence-transformers==6.2.0

.PHONY: app install test lint bench constraints faults test-newest test-oldest demo-report selection-report chromium clean

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

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV), once: some minutes without a word, and up to some gigabytes."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) with what the tests need, once: some minutes without a word."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps $(ORACLES)
	touch $@ $(VENV)/.installed

constraints: $(VENV)/.installed-dev
	$(COMPILE) --all-extras --universal --upgrade --output-file constraints.txt

faults: $(VENV)/.installed-dev
	BASISCOPE_FAULTS=all BASISCOPE_MUTATIONS=10000 $(BIN)/python -m pytest tests/faults tests/test_readers.py tests/test_model_folder.py

test-newest: chromium
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --upgrade --editable ".[dev]"
	$(VENV)-newest/bin/python -m pip install --quiet --no-deps $(ORACLES)
	$(VENV)-newest/bin/python -m pytest -n 2 --dist loadfile

test-oldest: $(VENV)/.installed-dev chromium
	$(PYTHON) -m venv $(VENV)-oldest
	$(COMPILE) --extra dev --resolution lowest-direct --output-file $(VENV)-oldest/versions.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --requirement $(VENV)-oldest/versions.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --no-deps --editable . $(ORACLES)
	$(VENV)-oldest/bin/python -m pytest -n 2 --dist loadfile

chromium:
	@command -v chromium > /dev/null || command -v google-chrome > /dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq && apt-get install -qq -y chromium; } || \
		echo "No Chromium: the browser tests will be skipped (apt-get install chromium)."

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-oldest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
