"""MLflow's store in a file: made whole or not at all.

MLflow makes the tables of a new SQLite file in some sixty steps; a file that a full disk has cut short can be neither
used nor completed afterwards.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from kdcore.errors import Refused
from kdcore.importing import importing
from pipelines.files import claim_name


def make_store(uri: str, artifacts: Path) -> None:
    """Make the SQLite file that a store's address names, if it is missing; do nothing for another store.

    artifacts: the folder of the files of MLflow's own, unused experiment. Refused for a file that is read-only.
    """
    path = sqlite_file(uri)
    if path is None:
        return
    refuse_read_only(uri)
    with importing("mlflow.store.tracking.sqlalchemy_store"):  # only here: it takes a second, as the client does
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        store = SqlAlchemyStore(f"sqlite:///{temporary}", artifacts.as_uri())
        store.engine.dispose()
        with suppress(FileExistsError):
            claim_name(temporary, path)  # unlike a rename, it leaves what another run has made meanwhile
    finally:
        for left in path.parent.glob(f"{temporary.name}*"):  # with what SQLite keeps next to it
            left.unlink()


def refuse_read_only(uri: str) -> None:
    """Refuse an SQLite store that lets nothing be written: its file, or the folder in which SQLite keeps a journal."""
    path = sqlite_file(uri)
    if path is None or not path.exists():
        return
    if closed := next((place for place in (path, path.parent) if not os.access(place, os.W_OK)), None):
        raise Refused(
            f"the MLflow store {uri} cannot be written, as {closed} is read-only here; grant write access to it, or "
            "name another store as tracking.uri"
        )


def is_missing(uri: str) -> bool:
    """Return whether a store is a file that is not there; MLflow's client would make an empty one in its place."""
    path = sqlite_file(uri)
    return path is not None and not path.exists()


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite store; None for another store."""
    scheme, _, rest = uri.partition(":///")
    return Path(rest.partition("?")[0]) if scheme.partition("+")[0] == "sqlite" else None
