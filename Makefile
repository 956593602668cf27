# Everything from a bare clone: each target installs what it needs into .venv first.
# make demo | test | check | faults | bench | studies | gpu-check | ui | install | clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One arithmetic thread a process: packs run side by side, one processor each.
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test check faults bench studies gpu-check format ui clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV): some 7 GB (torch with its GPU libraries), a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off \
		--constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/modmix run studies/quickstart.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 3 --dist worksteal -m "not cluster"
	$(BIN)/python -m pytest -q -n 3 --dist worksteal -m cluster

check: $(STAMP)
	$(BIN)/ruff format --check platform tests
	$(BIN)/ruff check platform tests
	$(BIN)/mypy
	$(BIN)/codespell

format: $(STAMP)
	$(BIN)/ruff format platform tests
	$(BIN)/ruff check --fix platform tests

# make faults COUNT=10 ONLY=driver SEED=1: tests/faults/README.md says what it does.
faults: $(STAMP)
	$(BIN)/python -m tests.faults.random_faults --count $(or $(COUNT),100) --seed $(or $(SEED),0) \
		$(if $(ONLY),--only $(ONLY))

# make bench ONLY=curve,driver: tests/benchmarks/README.md says which there are.
bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks --only "$(ONLY)"

# The small studies of both papers; MODMIX_TEST_DATA names the folder of their data.
studies: $(STAMP)
	@[ -n "$${MODMIX_TEST_DATA:-}" ] || { echo "make studies: set MODMIX_TEST_DATA to the folder of their data, see studies/README.md" >&2; exit 2; }
	@for file in studies/*/small/*.yaml; do \
		echo "== $$file"; $(BIN)/modmix run $$file || exit 1; \
	done

# Needs a Python with torch and numpy only: make gpu-check PYTHON=python3 uses it as it is.
# ONLY=checks or ONLY=rates does half of it.
gpu-check:
	@python=$(BIN)/python; [ "$(origin PYTHON)" = file ] && [ -x $$python ] || python=$(PYTHON); \
	$$python -m tests.gpu_check $(if $(ONLY),--only $(ONLY)) --minutes $(or $(MINUTES),8)

ui: $(STAMP)
	$(BIN)/modmix ui

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
