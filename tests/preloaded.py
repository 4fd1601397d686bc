"""Imported by the process that others are forked from, after all else (`tests/processes.py`)."""

import gc

from tests.mlflow_tables import keep_tables

keep_tables()
gc.freeze()  # what is never collected is never copied either
