# Every target makes its own virtual environment and installs what it needs, once.
# PYTHON=python3.12, VENV=/some/where and PIP_ARGS="..." (extra arguments of pip install) may be given.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OP ?=

.PHONY: install test test-cluster kills sanitize demo docs help lint format bench clean

install: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e ".[test]"
	touch $@

# Two processes of one thread each: most tests are too small for two threads.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --ignore tests/cluster

# Processes that join and leave, die, stop, fill the disk, have other clocks, and a network of their own (as root).
test-cluster: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests/cluster

# 100 kills at random moments; hours on a slow machine.
KILLS ?= 100
kills: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONPATH=tests:tests/cluster $(BIN)/python -m cluster.kills $(KILLS)

# The tests of ops and of the checksum on a copy of the package whose extension finds bad addresses and undefined
# behaviour. C++ is compiled with CFLAGS by older setuptools, with CXXFLAGS by newer.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all
sanitize: $(STAMP)
	CFLAGS="$(SANITIZE) -g1" CXXFLAGS="$(SANITIZE) -g1" LDFLAGS="$(SANITIZE)" $(BIN)/python setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	grep -q __asan_report build/sanitize/lib/emfast/_C*.so || { echo "make sanitize: the compiler took no notice of the flags"; exit 1; }
	PYTHONPATH=build/sanitize/lib ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		$(BIN)/pytest tests/ops tests/nn/test_prepared.py --backend cpp --ignore tests/ops/test_aot.py --ignore tests/ops/test_interpreter.py

demo: $(STAMP)
	$(BIN)/emfast train --config examples/demo.yaml

# The site is build/site; a link that leads nowhere is an error.
docs: $(STAMP)
	$(BIN)/mkdocs build --strict --quiet

# What `emfast COMMAND --help` prints, from the docstrings of the options.
help: $(STAMP)
	$(BIN)/python -m emfast.commands.help

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py $(OP)

# Keeps runs/ and the data.
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f emfast/_C*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
