# Every command that people run. `make demo` and `make test` work on a fresh clone.

VENV := .venv
BIN := $(VENV)/bin
# Compiling 40,000 modules ahead takes longer than the demo needs to import the few it uses.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
DATA ?= data

# Where this is set, every process would compile what it imports anew: 20 s for torch and EasyOCR.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-slow test-gpu test-e2e screenshots bench bench-slots bench-shards check format dev clean constraints

help:  ## Show what there is.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

install: $(VENV)/.installed  ## Install into .venv what running needs.

demo: install  ## Make a small corpus with known text, run the pipeline on it, compare.
	@$(BIN)/ocr-assets demo

test: $(VENV)/.installed-dev  ## Run the tests, with coverage.
	$(BIN)/python -m pytest --cov --cov-report=term -m "not slow"

test-slow: $(VENV)/.installed-dev  ## Run the tests that take minutes.
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.installed-dev  ## Run the tests that need an NVIDIA card; fails without one.
	REQUIRE_GPU=1 $(BIN)/python -m pytest -m gpu

test-e2e: $(VENV)/.installed-browser  ## Test the UI and the report in a real browser; installs what that needs.
	REQUIRE_BROWSER=1 $(BIN)/python -m pytest -m browser tests/e2e

screenshots: $(VENV)/.installed-browser  ## Write the pictures that the README shows to docs/images.
	SCREENSHOTS=docs/images REQUIRE_BROWSER=1 $(BIN)/python -m pytest -m browser tests/e2e

bench: install  ## Measure each detector's frames per second.
	$(BIN)/python -m benchmarks.detectors

bench-slots: $(VENV)/.installed-dev  ## Count workers at once on a simulated card, however they are launched (10 min).
	$(BIN)/python -m benchmarks.launch_modes

bench-shards: install  ## Measure what a daemon costs while 1,000 shards wait (4 min).
	$(BIN)/python -m benchmarks.many_shards

check: $(VENV)/.installed-dev  ## Check format, lint and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/.installed-dev  ## Format, and mend what the linter can mend.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Under a daemon, a backfill is cut into runs of so many shards, which share the slots.
dev: export OCR_ASSETS_SHARDS_PER_RUN ?= 4
dev: install  ## Start Dagster's UI and daemon on localhost:3000. DATA=dir: on another data directory.
ifeq ($(DATA),data)
	$(BIN)/dagster dev
else
	DAGSTER_HOME=$(abspath $(DATA))/dagster OCR_ASSETS_DATA_DIR=$(abspath $(DATA)) $(BIN)/dagster dev
endif

constraints: $(VENV)/.installed-dev  ## Write the installed versions to constraints.txt.
	{ echo "# The exact set that the tests ran with. Written by \`make constraints\`."; \
	  $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | sort -f; } > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean:  ## Remove the virtual environment and the demo; not your data.
	rm -rf $(VENV) demo

$(BIN)/python:
	python3 -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV); the first time this takes a minute or two."
	@$(PIP_INSTALL) -e '.[weights]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the tools for tests and checks."
	@$(PIP_INSTALL) -e '.[weights,dev]'
	@touch $@

# A browser that the system has goes before Playwright's own.
$(VENV)/.installed-browser: $(VENV)/.installed-dev
	@echo "Installing what the browser tests need."
	@$(PIP_INSTALL) -e '.[weights,dev,browser]'
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
	  || $(BIN)/python -m playwright install chromium
	@touch $@
