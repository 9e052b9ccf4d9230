# One command a task. Each sets up .venv from requirements.lock when it is missing or stale.
#
#   make demo                              raw files to a published, verified table, on local files; no Java, no server
#   make demo DATA=examples/host-metrics   the same on a real recording
#   make dev                               the Dagster UI on the demo's data; DATA as above
#   make demo-production                   the same on PostgreSQL, S3 and Spark, with Dagster as a deployment runs it; needs Java 17 or 21
#   make test                              all tests but the thorough part of the fault suite
#   make test-faults                       the fault suite, thorough; SEED=7 repeats a run
#   make screenshots                       the pictures in docs/images anew, from the Dagster UI in Chromium
#   make check                             formatting, lint, types, definitions
#   make bench                             this project beside its peers and the seed's program, about 40 minutes; needs Java
#   make bench-full                        every benchmark, most of a day; needs Java and 150 GB of disk
#   make lock                              resolve the dependencies of setup.cfg anew
#   make sbom                              what is locked, as a CycloneDX bill of materials in dist/
#   make audit                             known vulnerabilities of what is locked; asks PyPI, and fails where that cannot be asked
#   make clean                             delete .venv, what was built, and the data of demos, benchmarks and the fault suite; none of yours

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?=
ARGS ?=
PYTEST_ARGS ?= --numprocesses auto --dist loadgroup
SEED ?= $(shell od -An -N3 -tu4 /dev/urandom | tr -d ' ')

ifneq ($(DATA),)
export ROLLUP_HOME ?= .rollups/$(notdir $(patsubst %/,%,$(DATA)))
else
export ROLLUP_HOME ?= .rollups/demo
endif

.PHONY: demo demo-production dev test test-faults screenshots check format bench bench-full lock sbom audit clean

# A terminal's DAGSTER_HOME (README.md, "Work with it") has the runs of other data with the same partitions. It is emptied and not unset:
# then the demo knows that the commands which it prints for that terminal have to do the same.
demo: $(READY)
	$(if $(DAGSTER_HOME),DAGSTER_HOME=) $(BIN)/rollups demo $(if $(DATA),--data $(DATA))

demo-production: $(READY)
	env -u ROLLUP_HOME $(BIN)/python -m deploy.demo_production $(ARGS)

dev: $(READY)
	env -u DAGSTER_HOME $(BIN)/rollups dev

test: $(READY)
	env -u ROLLUP_HOME $(BIN)/python -m pytest $(PYTEST_ARGS)

test-faults: SEED := $(SEED)
test-faults: $(READY)
	env -u ROLLUP_HOME $(BIN)/python -m pytest rollup_assets_tests $(PYTEST_ARGS) --faults --seed=$(SEED) --hypothesis-seed=$(SEED)

screenshots: $(READY)
	env -u ROLLUP_HOME ROLLUP_TEST_REQUIRE=all ROLLUP_SCREENSHOTS=docs/images $(BIN)/python -m pytest rollup_assets_tests/integration/test_browser.py

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	env -u ROLLUP_HOME PATH="$(CURDIR)/$(BIN):$$PATH" dg check defs

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

BENCHMARK = env -u ROLLUP_HOME $(BIN)/python -m

bench: $(READY)
	$(BENCHMARK) benchmarks
	$(BENCHMARK) benchmarks.seed --shape sparse --work .rollups/benchmark

bench-full: $(READY)
	$(BENCHMARK) benchmarks --forms --repeat 1
	$(BENCHMARK) benchmarks.spark --forms --repeat 1
	$(BENCHMARK) benchmarks --full
	$(BENCHMARK) benchmarks.spark --full
	$(BENCHMARK) benchmarks.seed --repeat 5
	$(BENCHMARK) benchmarks.seed --start both --repeat 3 --output benchmarks/results/seed_cold.json
	$(BENCHMARK) benchmarks.sizes --sizes 1,4,36,360
	$(BENCHMARK) benchmarks.peer_sizes
	$(BENCHMARK) benchmarks.shapes
	$(BENCHMARK) benchmarks.skew
	$(BENCHMARK) benchmarks.storages
	$(BENCHMARK) benchmarks.publishing
	$(BENCHMARK) benchmarks.table_age --full
	$(BENCHMARK) benchmarks.orchestration
	$(BENCHMARK) benchmarks.querying
	$(BENCHMARK) benchmarks.capacity
	$(BENCHMARK) benchmarks.load
	$(BENCHMARK) benchmarks.seed_size
	$(BENCHMARK) benchmarks.seed --site .rollups/benchmark-seed-size/sparse-686482740 --limit-seconds 7200 --output benchmarks/results/seed_at_size.json

# What images install (deploy/) is a part of the one lock file, with the same versions and hashes.
COMPILE = $(BIN)/uv pip compile --python-version 3.11 --generate-hashes --no-emit-index-url --no-strip-extras --quiet

lock: $(READY)
	$(COMPILE) setup.cfg --all-extras --upgrade --output-file requirements.lock
	$(COMPILE) setup.cfg --extra postgres --constraints requirements.lock --output-file deploy/requirements.lock
	$(COMPILE) setup.cfg --extra postgres --extra spark --constraints requirements.lock --output-file deploy/requirements-spark.lock
	printf 'build\nsetuptools\n' | $(COMPILE) - --constraints requirements.lock --output-file deploy/requirements-build.lock
	$(COMPILE) deploy/workers.in --constraints requirements.lock --output-file deploy/workers.lock

sbom: $(READY)
	mkdir -p dist
	$(BIN)/cyclonedx-py requirements --output-reproducible --output-format JSON --output-file dist/rollup_assets.cdx.json requirements.lock

# Where the service is missing, or is a mirror of packages alone, nothing is known: strict, so that this is no success.
audit: $(READY)
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --progress-spinner off --requirement requirements.lock \
		|| { echo "make audit: not passed. Either the packages named above are vulnerable, or PyPI's vulnerability service could not be asked about them."; exit 1; }

# Not all of .rollups, which is the default ROLLUP_HOME: raw data, table and runs of whoever uses this checkout may be there.
OWN_DATA = $(addprefix .rollups/,demo demo-production host-metrics benchmark benchmark-* faults)

clean:
	rm -rf $(VENV) build dist *.egg-info $(OWN_DATA)

# The lock file says what is installed; the stamp's age says whether it is. pip compiles modules, a third of its time: with `--no-compile`,
# every process compiled what it imports (up to 6 s a start) where PYTHONDONTWRITEBYTECODE forbids to keep it.
$(READY): requirements.lock setup.cfg pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	env -u ROLLUP_HOME $(BIN)/python -m rollup_assets.precompile
	touch $(READY)
