# Commands for a fresh machine, each doing all of its own set-up in a virtual environment:
#   make demo         install without torch, classify synthetic CT series from healthy to severely ill, write a report;
#                     DATA=path classifies slices of yours as well
#   make demo-train   train a small Mask-EfficientNet on generated phantoms, evaluate it, write a report
#   make test         lint, type check and test, as continuous integration does
#   make docs         build the documentation into build/site; a dead link ends it
#   make figures      render the recorded results again and put their tables into README, results and docs
#   make picture      look at the web page and both reports in Chromium and put their pictures into docs/images;
#                     needs chromium-driver
#   make sbom         what an installation with EXTRAS brings, as CycloneDX: build/product.cdx.json
#   make audit-dependencies   hold it against the databases of known vulnerabilities; needs a network
# PYTHON chooses the interpreter (3.11 or newer), VENV the environment's folder.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Processes that tests run in, each file of tests in one of them.
WORKERS ?= auto
SOURCES := $(shell find src -name '*.py' -o -name '*.yaml' -o -name '*.html' -o -name '*.j2' -o -name '*.css' -o -name '*.js')

.DELETE_ON_ERROR:
.PHONY: demo demo-train test lint types docs pytest figures picture sbom audit-dependencies clean

# What make sbom and make audit-dependencies look at, installed by itself: a developer's tools are no part of it.
EXTRAS ?= serve
PRODUCT := build/product
TOOLS := build/tools

# Exit status 3 says that some slices were refused or could not be read, which the table and the report show.
demo: $(VENV)/.installed
	rm -rf demo/series demo/predictions
	$(BIN)/groundglass data phantoms --series 0,0.2,0.5,0.9 --output demo/series
	$(BIN)/groundglass predict demo/series/severity-* $(if $(DATA),"$(DATA)") --output demo/predictions || [ $$? -eq 3 ]
	@echo "The report is at $(CURDIR)/demo/predictions/report.html"

demo-train: demo/train/report.html
	@echo "The report is at $(CURDIR)/demo/train/report.html"

test: lint types docs pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

pytest: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --durations=25 --cov --cov-report=term

figures: $(VENV)/.installed
	$(BIN)/python results/update.py

picture: $(VENV)/.installed-dev
	$(BIN)/python docs/pictures.py

sbom: $(PRODUCT)/.installed-$(EXTRAS) $(TOOLS)/.installed
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--output-file build/product.cdx.json $(PRODUCT)/bin/python
	@echo "The bill of materials is at $(CURDIR)/build/product.cdx.json"

audit-dependencies: $(PRODUCT)/.installed-$(EXTRAS) $(TOOLS)/.installed
	$(PRODUCT)/bin/python -m pip list --format=freeze --exclude groundglass >build/product.txt
	$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip --requirement build/product.txt

$(PRODUCT)/.installed-%: pyproject.toml | $(BIN)/python
	rm -rf $(PRODUCT)
	$(BIN)/python -m venv $(PRODUCT)
	$(PRODUCT)/bin/python -m pip install --quiet --disable-pip-version-check '.[$*]'
	touch $@

$(TOOLS)/.installed: | $(BIN)/python
	$(BIN)/python -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check 'cyclonedx-bom>=5' 'pip-audit>=2.7'
	touch $@

demo/train/report.html: demo/train/run/.finished
	$(BIN)/groundglass evaluate demo/train/run --data demo/train/phantoms/manifest.csv --split official --part test \
		--output demo/train

demo/train/run/.finished: demo/train/phantoms/manifest.csv
	rm -rf demo/train/run
	$(BIN)/groundglass train --recipe phantom-demo --data demo/train/phantoms/manifest.csv --split official --seed 0 \
		--output demo/train/run --cache demo/train/cache
	touch $@

demo/train/phantoms/manifest.csv: $(VENV)/.installed-train $(SOURCES)
	rm -rf demo/train
	$(BIN)/groundglass data phantoms --count 240 --severity 0.15:0.8 --seed 0 --size 256 --output demo/train/phantoms

# One stamp for each set of extras; a killed installation leaves none and is done again.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is missing or older than Python 3.11; name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "error: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

clean:
	rm -rf $(VENV) demo build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
