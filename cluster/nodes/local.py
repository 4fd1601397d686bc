"""Ray on this machine only: other machines cannot reach it, and users of this one need its token.

By default, Ray listens on all interfaces even where one machine is meant, and lets everyone read the token that it
makes. A cluster of several machines is its operator's: `cluster/deploy/README.md` says how to close it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Ray's own switch between a cluster and this machine only, named after the systems where it is off by default.
CLUSTER_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let a Ray that is started in the body, and all of its processes, listen only on the loopback address."""
    from ray._private import ray_constants  # Ray reads its switch once, when it is imported

    before, in_environment = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(CLUSTER_VARIABLE)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[CLUSTER_VARIABLE] = False, "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(CLUSTER_VARIABLE)
        if in_environment is not None:
            os.environ[CLUSTER_VARIABLE] = in_environment


def keep_token_private() -> None:
    """Make Ray's token, if there is none yet, as a file that only this user can read; make an older one so, too."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # a home that cannot be written to: Ray says so itself
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.touch(mode=0o600, exist_ok=False)
            path.write_text(secrets.token_hex(32))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
