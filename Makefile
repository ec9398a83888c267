# Two commands for a fresh machine, each doing all of its own set-up in a virtual environment:
#   make demo   train a small Mask-EfficientNet on generated phantoms, evaluate it, write demo/report.html
#   make test   lint, type check and test, as continuous integration does
# PYTHON chooses the interpreter (3.10 or newer), VENV the environment's folder.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(shell find src -name '*.py' -o -name '*.yaml' -o -name '*.html' -o -name '*.j2' -o -name '*.css')

.DELETE_ON_ERROR:
.PHONY: demo test lint types pytest clean

demo: demo/report.html
	@echo "The report is at $(CURDIR)/demo/report.html"

test: lint types pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

pytest: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --cov --cov-report=term

demo/report.html: demo/run/.finished
	$(BIN)/groundglass evaluate demo/run --data demo/phantoms/manifest.csv --split official --part test --output demo

demo/run/.finished: demo/phantoms/manifest.csv
	rm -rf demo/run
	$(BIN)/groundglass train --recipe phantom-demo --data demo/phantoms/manifest.csv --split official --seed 0 \
		--output demo/run --cache demo/cache
	touch $@

demo/phantoms/manifest.csv: $(VENV)/.installed-train $(SOURCES)
	rm -rf demo
	$(BIN)/groundglass data phantoms --count 240 --severity 0.15:0.8 --seed 0 --size 256 --output demo/phantoms

# One stamp for each set of extras; a killed installation leaves none and is done again.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is missing or older than Python 3.10; name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "error: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

clean:
	rm -rf $(VENV) demo build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
