# The two commands of the README, and what they stand on. Everything happens in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.demo-installed
DEV := $(VENV)/.dev-installed
DOCS := $(VENV)/.docs-installed

.PHONY: bench-peers demo docs gpu lint pictures setup clean test test-docs test-faults test-hostile test-lowest test-newest \
	test-portable test-slow tests types

demo: $(DEMO)
	$(BIN)/featcache demo

test: setup lint types tests

# The documentation as a site in build/site, which loads nothing from elsewhere. A warning is an error.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Everything that README, docs/ and the notebooks show, run as it stands.
test-docs: $(DOCS)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m docs

# The pictures of README, from a demo in a folder of its own; needs chromium.
pictures: $(DOCS)
	$(BIN)/python docs/make_pictures.py

# Power cuts, kills and flipped bytes for longer; ends with a line of counts.
test-faults: setup
	$(BIN)/python -m tests.support.fault_counts

# Models, files, networks and machines that do harm or do not answer; ends with a line of counts.
test-hostile: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support.hostile_counts

# The bounds in pyproject.toml: every direct dependency at its lowest, and the newest release of each, whatever
# the upper bounds say. In environments of their own, some 5 GB each: `rm -rf .venv-lowest .venv-newest` after it.
SHORT := $(addprefix tests/cli/test_,commands.py extract.py train_head.py compare.py prompt.py streams.py demo.py help.py) \
	tests/extraction/test_api.py tests/backbone/test_load.py \
	tests/backbone/test_packing.py tests/data/test_split.py tests/system/test_packages.py
TOOLS := 'pytest>=8' 'pytest-socket>=0.7' 'hypothesis>=6.100'

test-lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --disable-pip-version-check -q uv
	VIRTUAL_ENV=$(VENV)-lowest $(VENV)-lowest/bin/uv pip install --resolution lowest-direct \
		-e '.[demo,report,serve]' $(TOOLS)
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/pytest $(SHORT)

test-newest:
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --disable-pip-version-check -q uv
	sed -E 's/,<[0-9.]+"/"/' pyproject.toml > $(VENV)-newest/pyproject.toml
	VIRTUAL_ENV=$(VENV)-newest $(VENV)-newest/bin/uv pip install $(TOOLS) --upgrade \
		-r $(VENV)-newest/pyproject.toml --extra demo --extra report --extra serve
	VIRTUAL_ENV=$(VENV)-newest $(VENV)-newest/bin/uv pip install --no-deps -e .
	sed -E -i '/^Requires-Dist/s/<[0-9.]+,//' \
		$(VENV)-newest/lib/python*/site-packages/featcache-*.dist-info/METADATA
	OMP_NUM_THREADS=1 $(VENV)-newest/bin/pytest $(SHORT)

# What Windows and macOS refuse, refused here: docs/platforms.md.
test-portable: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -m portable

# Tests of CUDA, and speeds beside peers and the GPU's peak: benchmarks/gpu.json, and a table in benchmarks/README.md.
gpu:
	$(PYTHON) benchmarks/gpu.py

# Extraction in turns with every peer on the same texts, one table. The peers have an environment of their own, some
# 4 GB: `rm -rf .venv-peers` after it. MODEL, DATASET and BENCH name others than BERT-base shapes and made-up reviews.
MODEL ?= build/bench/bert-base
DATASET ?= build/bench/reviews
BENCH ?= --max-length 350 --rows 128

bench-peers: $(DEMO) $(VENV)-peers/.installed
	test -e $(MODEL) -a -e $(DATASET) || $(BIN)/python benchmarks/made_up.py build/bench
	$(BIN)/featcache bench extract --peer-python $(VENV)-peers/bin/python \
		--model $(MODEL) --dataset $(DATASET) $(BENCH)

$(VENV)-peers/.installed: benchmarks/peers.txt
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install --disable-pip-version-check -q -r benchmarks/peers.txt
	touch $@

# Tests that take minutes each: a million rows, a hundred kills, a real Ray, the wheel in an empty environment; and
# every property test with more examples than `make test` gives it.
test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'slow or hypothesis and not hostile' --hypothesis-profile full

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# cli/ is imported as featcache_cli; mypy is shown it under that name.
types:
	mkdir -p build/types
	ln -sfn ../../featcache build/types/featcache
	ln -sfn ../../cli build/types/featcache_cli
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml featcache featcache_cli

# Two workers with one thread each: two OpenMP pools on few cores slow each other down. Processes that tests start
# read compiled modules, also where the environment says that Python writes none.
tests:
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --durations 10

setup: $(DEV)

PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

# torch comes first and by its exact version, so that nothing else pulls in another build of it.
$(DEMO): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[demo,report]'
	touch $(DEMO)

$(DEV): $(DEMO)
	$(PIP) -e '.[demo,dev]'
	touch $(DEV)

$(DOCS): $(DEV)
	$(PIP) -e '.[demo,dev,docs]'
	touch $(DOCS)

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest $(VENV)-peers build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
