"""MLflow's tables copied from the first store of the tests' process: to make them takes more than a small run does.

MLflow makes a new SQLite file's tables as they were years ago and then alters them in sixty steps, a second of the
processor's time. What it makes is a file's pages, the same every time, so they are kept and written into the next file.
"""

from __future__ import annotations

import sqlite3
import tempfile
from functools import cache
from pathlib import Path
from typing import Any


@cache
def copy_tables() -> None:
    """Have MLflow make the tables of one SQLite file in this process, and copy them into every further one."""
    from mlflow.store.db import utils

    make = utils._initialize_tables
    kept: list[bytes] = []

    def make_or_copy(engine: Any) -> None:
        if engine.dialect.name != "sqlite":
            make(engine)
            return
        with engine.connect() as connection, sqlite3.connect(":memory:") as tables:
            file = connection.connection.driver_connection
            if not kept:
                make(engine)
                file.backup(tables)
                kept.append(tables.serialize())
                return
            tables.deserialize(kept[0])
            try:
                tables.backup(file)
            except sqlite3.Error:  # a full disk, say, of which MLflow gives an account of its own
                make(engine)

    utils._initialize_tables = make_or_copy


def keep_tables() -> None:
    """Make the first store here and now, for processes that are forked from this one."""
    from cluster.tracking.mlflow_store import make_store

    copy_tables()
    with tempfile.TemporaryDirectory() as folder:
        make_store(f"sqlite:///{folder}/mlflow.db", Path(folder))
