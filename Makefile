# Each target does all of its own set-up: a fresh machine needs Python 3.11-3.13 and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest

# How many kill -9 trials `make soak` runs (single process; a quarter as many with two ranks).
KILLS ?= 20

# A Hub server that is not ours, in an environment of its own.
OLAH   := .venv-olah

.PHONY: demo test soak test-gpu test-network test-olah lint format lock bench clean help

help:
	@echo "make demo          train a teacher and a student on drawn images and open the results page"
	@echo "make test          the tests, on the CPU, without network"
	@echo "make soak          the long tests (KILLS=$(KILLS) kill -9 trials)"
	@echo "make test-gpu      the tests that need a CUDA device"
	@echo "make test-network  the tests that need the real Hugging Face Hub"
	@echo "make test-olah     pulls from olah, an independent Hub server"
	@echo "make lint          ruff and pyright          make format  apply ruff's format"
	@echo "make bench         the benchmarks            make lock    pin the dependencies anew"

$(READY): requirements.lock bootstrap.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	  f"tinyzoo needs Python 3.11-3.13, and $(PYTHON) is {v[0]}.{v[1]}: run make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r bootstrap.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --require-hashes \
	  --build-constraints requirements.lock -r requirements.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)
	$(BIN)/zoo demo

# By two processes, a file of tests each at a time.  Container images often ask Python to keep no
# bytecode: then every process that the tests start would compile torch and timm anew.
test: $(READY)
	PYTHONDONTWRITEBYTECODE= $(PYTEST) --numprocesses 2 --dist loadfile

soak: $(READY)
	TINYZOO_KILLS=$(KILLS) $(PYTEST) -m slow --timeout 3000

test-gpu: $(READY)
	$(PYTEST) -m gpu

test-network: $(READY)
	$(PYTEST) -m network

$(OLAH)/.ready: $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OLAH)
	VIRTUAL_ENV=$(OLAH) $(BIN)/uv pip install --quiet olah==0.5.4
	@touch $@

test-olah: $(OLAH)/.ready
	TINYZOO_OLAH=$(OLAH)/bin/olah-cli $(PYTEST) -m olah

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Universal (every supported Python and platform), with hashes and without registry addresses.
lock:
	uv pip compile --quiet --upgrade pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
	  --output-file requirements.lock
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > bootstrap.lock

clean:
	rm -rf $(VENV) $(OLAH) .pytest_cache .ruff_cache .hypothesis
