"""Imported by the process that others are forked from, after all else (`tests/processes.py`)."""

import gc

from nvidia.dali import fn, types  # noqa: F401  which the loader imports in every process that trains

from tests.mlflow_tables import keep_tables

keep_tables()
gc.freeze()  # what is never collected is never copied either
