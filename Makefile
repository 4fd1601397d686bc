PYTHON ?= python3
PY := .venv/bin/python
DATA ?=
TEACHER ?=

help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.venv/.ready: requirements.txt requirements-uv.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	.venv/bin/uv pip sync --quiet --python $(PY) --require-hashes --compile-bytecode requirements.txt requirements-uv.txt
	@touch $@

env: .venv/.ready  ## create the environment from the hash-checked pins

.PHONY: help env
