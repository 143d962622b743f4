# Every target goes through one virtual environment and installs what it needs; the second time nothing is installed.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check notebooks figures bench bench-long fuzz

demo: $(VENV)/.demo
	$(BIN)/attnlens demo --output demo

# One thread a process: models this small lose more to threads than they gain. Files stay whole, fixtures are shared.
test: check
	./tests/install_tools
	ATTNLENS_REQUIRE_ALL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 30

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# Runs them and keeps their outputs; `make test` runs them with fewer steps and keeps nothing.
notebooks: $(VENV)/.dev
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

figures: $(VENV)/.dev
	$(BIN)/python figures/demo.py

bench: $(VENV)/.dev
	for script in tests/bench/bench_*.py; do $(BIN)/python $$script || exit 1; done

# An hour or two on two cores.
bench-long: $(VENV)/.dev
	$(BIN)/python tests/bench/bench_record.py --lengths 16384 --threads 2
	$(BIN)/python tests/bench/bench_soak.py --texts 50000

# Files with any bytes, 100,000 of each kind; 200 changed bytes a file; 20 kills a command. What fails is kept in
# .hypothesis and tried first the next time.
fuzz: $(VENV)/.dev
	ATTNLENS_FUZZ=100000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto tests/test_fuzz.py tests/test_fuzz_analysis.py tests/test_corruption.py tests/test_kills.py

# torch is installed by its exact pin first: any looser request makes pip fetch gigabytes of CUDA packages.
$(VENV)/.base: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.demo pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
