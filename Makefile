# One command for each thing: `make` lists them. Needs Python 3.11 or 3.12 with its venv module and
# a network that reaches a Python package index; nothing else.
#
# Variables: PYTHON=python3.12 (the interpreter that makes .venv), EXTRAS=test,cuda (what to
# install), RUN=runs/demo (where `make demo` writes), WORKERS=2 (test processes).
EXTRAS ?= test
RUN ?= runs/demo
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
# Compiled programs are kept here, so the test processes and the commands they start share them.
COMPILED := $(CURDIR)/.pytest_cache/jax
# Tests compile for longer than they run, hence XLA's lowest optimization level, its older and
# quicker emitters of loops, and one thread per program.
QUICK_COMPILE := --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false \
  --xla_cpu_parallel_codegen_split_count=1

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

help:  ## list the targets
	@grep -E '^[.a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([.a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.12 python3.11); do \
	  "$$python" -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	    2>/dev/null && echo "$$python -m venv $(VENV)" && "$$python" -m venv $(VENV) && exit 0; \
	done; \
	rm -rf $(VENV); \
	echo 'No Python 3.11 or 3.12 with the venv module was found: install one (Debian 12: apt install' \
	  'python3-venv) or name one, as in make PYTHON=/path/to/python3.12 test' >&2; \
	exit 1

$(VENV)/installed: $(BIN)/python setup.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[$(EXTRAS)]' -c constraints.txt
	@touch $@

.venv: $(VENV)/installed  ## make the virtual environment and install the package into it
.PHONY: .venv

demo: $(VENV)/installed  ## train on phantoms, segment held-out ones, score and plot
	$(BIN)/python train.py --config=configs/demo.py --workdir=$(RUN)
	$(BIN)/python -m data --config=configs/demo.py --split=test --output=$(RUN)/test
	$(BIN)/python sample.py --checkpoint=$(RUN) --input=$(RUN)/test/images \
	  --output=$(RUN)/predictions --save=mask,probability,uncertainty,overlay,members
	$(BIN)/python evaluate.py --predictions=$(RUN)/predictions --references=$(RUN)/test \
	  --output=$(RUN)/evaluation

# Files are started in the order of their names: those of integration, which take longest, first.
test: $(VENV)/installed  ## run every test on the CPU
	mkdir -p $(COMPILED)
	JAX_PLATFORMS=cpu MPLBACKEND=agg JAX_COMPILATION_CACHE_DIR=$(COMPILED) \
	  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1 \
	  XLA_FLAGS="$(QUICK_COMPILE)" \
	  $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## remove the environment, caches and the demo run
	rm -rf $(VENV) $(RUN) .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
