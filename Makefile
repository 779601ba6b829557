# Everything a fresh machine with Python 3.11+ and make needs: `make run`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PACKAGES := fl_sim clients server attacker results run_simulation.py
# Many small tensors: one torch thread a process, parallelism over processes.
export OMP_NUM_THREADS := 1

.PHONY: run test test-portable lint format clean

run: $(STAMP)
	$(BIN)/python run_simulation.py

test: $(STAMP)
	$(BIN)/pytest -n 2 --dist loadgroup

# The numeric tests as on a processor without vector instructions: sums in another order.
test-portable: $(STAMP)
	ATEN_CPU_CAPABILITY=default $(BIN)/pytest -n 2 --dist loadgroup tests/attacker tests/fl_sim tests/results

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): pyproject.toml requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
