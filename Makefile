# Every target works on a fresh machine that has make and Python 3.11, 3.12 or 3.13: it makes .venv for itself.
# PYTHON=python3.12 chooses the interpreter, VENV=... the folder, WORKERS=4 the test processes.

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2
# `make bench BENCH=` is the full comparison: 5 GiB on disk, root, a quarter of an hour or more
BENCH   ?= --scale small --no-limit

BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CORE    := $(VENV)/.coterie-core
DEV     := $(VENV)/.coterie-dev

PROMPT  := The captain looked at the sea
# about half of the pocket model's experts fit beside its other weights
MEMORY  := 12MiB

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check format lint types bench docs docs-check clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
	printf '  make %-11s %s\n' "$$name" "$$text"; done

demo: $(CORE) ## run the model in the package with half its experts on disk
	@echo '$$ coterie run pocket "$(PROMPT)" --memory $(MEMORY) --max-new-tokens 60'
	@$(BIN)/coterie run pocket "$(PROMPT)" --memory $(MEMORY) --max-new-tokens 60 --temperature 0
	@echo
	@echo 'Next:'
	@echo '  . $(VENV)/bin/activate'
	@echo '  coterie verify pocket --memory $(MEMORY)        # the proof: the same bits as with everything in memory'
	@echo '  coterie plan pocket --memory $(MEMORY)          # what more memory would buy'
	@echo '  coterie inspect pocket                     # what is inside'
	@echo '  coterie run pocket                         # talk to it'
	@echo '  coterie run MODEL "..." --memory 6GiB      # a checkpoint of your own: see docs/run.md'

test: $(DEV) ## run every test, with coverage
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --cov=coterie --cov-report=term --cov-fail-under=85

check: format lint types test docs-check ## everything that must pass before a change is merged

format: $(DEV)
	$(BIN)/ruff format --check

lint: $(DEV)
	$(BIN)/ruff check

types: $(DEV)
	$(BIN)/mypy

docs-check: $(DEV)
	$(BIN)/mkdocs build --strict --quiet

docs: $(DEV) ## write the generated pages, and build the site in site/
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python docs/generate_families.py
	$(BIN)/python docs/generate_papers.py
	$(BIN)/mkdocs build --strict

bench: $(DEV) ## a small run of the benchmarks (see docs/benchmarks.md)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/offload.py $(BENCH)

clean: ## remove what was built, keep .venv
	rm -rf build dist site htmlcov .coverage .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests benchmarks examples docs -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps say what was installed from which pyproject.toml and constraints.txt.
$(CORE): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[dev]"
	@touch $(CORE) $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo \
	'There is no $(PYTHON). Install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=python3.12 ...'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo \
	"Coterie needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version). Name another: make PYTHON=python3.12 ..."; \
	exit 1; }
	$(PYTHON) -m venv $(VENV)
