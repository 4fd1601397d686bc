"""Imported by the process that others are forked from, after all else (`tests/processes.py`)."""

from tests.mlflow_tables import keep_tables

keep_tables()
