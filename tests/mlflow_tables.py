"""MLflow's tables copied from the first store of the tests' process: to make them takes more than a small run does.

MLflow makes a new SQLite file's tables as they were years ago and then alters them in sixty steps, a second of the
processor's time. What it makes is a file's pages, the same every time, so they are kept and written into the next file.
"""

from __future__ import annotations

import sqlite3
from functools import cache
from typing import Any


@cache
def copy_tables() -> None:
    """Have MLflow make the tables of one SQLite file in this process, and copy them into every further one."""
    from mlflow.store.db import utils

    make, kept = utils._initialize_tables, sqlite3.connect(":memory:", check_same_thread=False)

    def make_or_copy(engine: Any) -> None:
        if engine.dialect.name != "sqlite":
            make(engine)
            return
        with engine.connect() as connection:
            file = connection.connection.driver_connection
            if not kept.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                make(engine)
                file.backup(kept)
                return
            try:
                kept.backup(file)
            except sqlite3.Error:  # a full disk, say, of which MLflow gives an account of its own
                make(engine)

    utils._initialize_tables = make_or_copy
