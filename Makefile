# Everything a fresh machine with Python 3.11+ and make needs: `make run`, `make test`, `make docs`.
PYTHON ?= python3
BIN := .venv/bin
RUNTIME := .venv/.runtime
DEVELOPMENT := .venv/.development
# Exact versions, and errors only: setuptools warns at length of what an editable install is.
INSTALL := $(BIN)/pip install --quiet --quiet --constraint constraints.txt
# Many small tensors: one torch thread a process, parallelism over processes.
export OMP_NUM_THREADS := 1

.PHONY: run test test-portable lint format docs results clean

run: $(RUNTIME)
	@$(BIN)/python run_simulation.py
	@echo "README.md shows the same table and says on which processor it was made."

test: $(DEVELOPMENT)
	$(BIN)/pytest -n 2 --dist loadgroup

# The numeric tests as on a processor without vector instructions: sums in another order.
test-portable: $(DEVELOPMENT)
	ATEN_CPU_CAPABILITY=default $(BIN)/pytest -n 2 --dist loadgroup tests/attacker tests/fl_sim tests/results

lint: $(DEVELOPMENT)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python -m docs.render --check

format: $(DEVELOPMENT)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The documentation, into site/. It needs no network, and a warning is an error.
docs: $(DEVELOPMENT)
	$(BIN)/python -m docs.render --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html; to search, run $(BIN)/mkdocs serve."

# The tables and pictures of docs/ that attacks and studies make: five CPU hours. It says what is
# left and what it costs before it starts, and continues where it stopped. RESULTS="--list" only
# says so; RESULTS="--smoke" makes all of it at the size of seconds, in runs/.
results: $(DEVELOPMENT)
	$(BIN)/python -m benchmarks.evidence.remake $(RESULTS)
	$(BIN)/python -m docs.render

$(RUNTIME): requirements.txt constraints.txt
	@echo "Installing what a study needs into .venv; the first time takes minutes, most of them PyTorch."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(INSTALL) --upgrade pip
	@$(INSTALL) --requirement requirements.txt
	@touch $@

$(DEVELOPMENT): $(RUNTIME) pyproject.toml
	@echo "Installing what tests and linters need into .venv."
	@$(INSTALL) --build-constraint constraints.txt --editable ".[dev]"
	@touch $@

clean:
	rm -rf .venv runs site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
