# make demo   everything from a bare machine: environment, a small sweep on the CPU, the leaderboard
# make test   the tests          make lint   style, types, floors          make slow   the tests that take minutes
#
# torch: PyPI's Linux wheels carry CUDA, gigabytes of it. Without an NVIDIA GPU, name PyTorch's CPU index:
#   make demo PIP="pip --extra-index-url <the CPU index>"

PYTHON ?= python3
PIP ?= pip
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test slow lint
demo: $(VENV)/.installed
	$(BIN)/python -m mad.sweep

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "slow and not gpu"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# pyproject.toml and constraints.txt say what is installed; the stamps say when it was.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m $(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m $(PIP) install -q -c constraints.txt -e '.[dev]'
	touch $@
