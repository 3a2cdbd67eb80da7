# One target each; every target makes .venv first if it is not there. `app` and `demo` install only what the program needs, the others the development tools, too.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup app demo test docs faults fuzz slow lint types bench audit lock screenshots clean

setup: .venv/dev

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/dev: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	touch $@

app: .venv/ready
	$(BIN)/hra-diffusion app

demo: .venv/ready
	$(BIN)/hra-diffusion demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz

slow: setup
	$(BIN)/python -m pytest -m slow

faults: setup
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -m faults.table
	PYTHONPATH=.:tests $(BIN)/python -m faults.bombs

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

bench: setup
	for file in benchmarks/bench_*.py; do $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1; done
	$(BIN)/python -m benchmarks.tables
	$(BIN)/python -m benchmarks.study_tables

.venv/tools:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet pip-audit==2.10.1 uv==0.13.9

audit: .venv/tools
	.venv/tools/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt
	.venv/tools/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements.lock

lock: .venv/tools
	.venv/tools/bin/uv pip compile pyproject.toml --constraint constraints.txt --universal --python-version 3.11 \
		--generate-hashes --custom-compile-command "make lock" --quiet --output-file requirements.lock

screenshots: setup demo
	$(BIN)/python tests/screenshots.py outputs/demo docs/images

clean:
	rm -rf .venv outputs
