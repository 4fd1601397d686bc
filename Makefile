PYTHON ?= python3
PY := .venv/bin/python
DATA ?=
TEACHER ?=
WEIGHTS ?=
OUTPUT ?= outputs/demo
# What starts no Ray, in three parts: those below ops take a quarter of the seconds each, and fill cores to the end.
LIBRARIES := tests/kdcore tests/pipelines tests/attacks
CLUSTER := tests/cluster
WITHOUT_RAY := not ray and not gpu and not long

help:         ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':|## ' '{printf "  make %-12s %s\n", $$1, $$NF}'

env: .venv/.ready  ## create the environment (.venv) from the hash-checked pins

demo: env     ## teacher, student alone, student distilled; DATA=FOLDER TEACHER=timm-name WEIGHTS=FILE for your own images
	$(PY) -m ops demo --output $(OUTPUT) $(if $(DATA),--data "$(DATA)") $(if $(TEACHER),--teacher "$(TEACHER)") \
	  $(if $(WEIGHTS),--teacher-weights "$(WEIGHTS)")

check: env    ## before a commit: lint, types, and all of `make test` that starts no Ray
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint check-ops check-cluster check-libraries

check-libraries: env
	$(PY) -m pytest -m "$(WITHOUT_RAY)" $(LIBRARIES)

check-cluster: env
	$(PY) -m pytest -m "$(WITHOUT_RAY)" $(CLUSTER)

check-ops: env
	$(PY) -m pytest -m "$(WITHOUT_RAY)" $(addprefix --ignore=,$(LIBRARIES) $(CLUSTER))

test: env     ## the tests that need no GPU, but for test-long: what starts Ray, in three parts, beside what does not
	$(MAKE) --no-print-directory --jobs 3 --output-sync=target \
	  test-nodes test-processes test-ray check-ops check-cluster check-libraries

# Tests that kill nodes and drivers wait more than they compute: three at once keep two cores busy.
test-nodes: env
	$(PY) -m pytest -m "own_ray and not gpu and not long" $(CLUSTER)

test-processes: env
	$(PY) -m pytest -m "own_ray and not gpu and not long" --ignore=$(CLUSTER)

test-ray: env
	$(PY) -m pytest -m "ray and not own_ray and not gpu and not long"

test-long: env  ## what `make test` leaves out, by hand: minutes of kills, a C++ compiler, a second server
	$(PY) -m pytest -m long

test-fast: env  ## the tests that start no Ray cluster and take seconds
	$(PY) -m pytest -m "not gpu and not ray and not slow"

test-gpu: env  ## the tests that need a GPU
	$(PY) -m pytest -m gpu

lint: env     ## ruff and mypy
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

format: env   ## let ruff format and mend what it can
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: env     ## the table and the figure of ops/benchmarks/README.md, from the result files
	$(PY) -m ops.benchmarks.comparisons

pages: env     ## every generated page and table anew, from the result files, the recipes and the fields
	$(PY) -m ops.benchmarks.tables
	$(PY) -m ops.benchmarks.papers
	$(PY) -m ops.benchmarks.comparisons
	$(PY) -m ops.benchmarks.families --page
	$(PY) -m ops.reference

bench-step: env  ## what a training step costs beside a loop by hand, timm's task, and by its parts
	$(PY) -m ops.benchmarks.step

bench-cache: env  ## what a teacher cache costs: reading, a step, the build
	$(PY) -m ops.benchmarks.cache

bench-scale: env  ## steps on 1, 2, 4 workers, start-up against a bare Ray Train job, checkpoints
	$(PY) -m ops.benchmarks.scale

bench-growth: env  ## seconds and memory at 50 thousand to 14 million samples
	$(PY) -m ops.benchmarks.growth

bench-images: env  ## images/s from files, tars and packs, beside other libraries; IMAGES=FOLDER|TAR of JPEGs
	$(PY) -m ops.benchmarks.images --images "$(IMAGES)"

attack: env   ## a hundred kills, pairs of processes on one folder, 30 runs and 2,000 steps in a process; MINUTES=25
	nice -n 5 $(PY) -m ops.benchmarks.attack_soak
	nice -n 5 $(PY) -m ops.benchmarks.attack --minutes $(or $(MINUTES),25)

audit: env    ## known faults of the pinned packages, by pip-audit; by hand, it needs the network
	.venv/bin/uv tool run pip-audit --require-hashes --disable-pip $(foreach file,requirements.txt requirements-uv.txt cluster/deploy/requirements-mlflow.txt,-r $(file))

families: env  ## every architecture family of timm in every role, by its smallest network; a table in kdcore/README.md
	$(PY) -m ops.benchmarks.families
	$(PY) -m ops.benchmarks.families --page

paper3: env   ## the feature-only paper's claim on 20 classes of ImageNet, an hour of it; DATA=FOLDER the first time
	$(PY) -m ops reproduce paper3 $(if $(DATA),--data "$(DATA)")

first-day: env  ## the first day with one's own photographs, each command timed; DATA=FOLDER WEIGHTS=FILE
	$(PY) -m ops.benchmarks.first_day --data "$(DATA)" --weights "$(WEIGHTS)"

doctor: env   ## what this machine has, and what is missing
	$(PY) -m ops doctor

pins: env     ## write requirements.txt anew from pyproject.toml
	.venv/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --quiet --extra demo --extra paper3 --extra s3 --extra dev pyproject.toml -o requirements.txt

.venv/.ready: requirements.txt requirements-uv.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and \"Python 3.11 or newer is needed: make PYTHON=python3.12 ...\")"
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	.venv/bin/uv pip sync --quiet --python $(PY) --require-hashes --compile-bytecode requirements.txt requirements-uv.txt
	@touch $@

.PHONY: help env demo test test-nodes test-processes test-ray check check-libraries check-cluster check-ops test-long test-fast test-gpu lint format bench bench-step bench-cache bench-scale bench-growth bench-images attack audit families paper3 first-day doctor pages pins
