"""Asks the model hub once whether it is reachable: if not, earlier downloads are used, and errors come early."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from urllib.parse import urlsplit

from huggingface_hub import constants

PATIENCE_SECONDS = 4.0
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@cache
def hub_answers() -> bool:
    """Return whether the hub accepts a connection within seconds; True where a proxy may relay it."""
    if any(os.environ.get(name) for name in PROXIES):
        return True
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), PATIENCE_SECONDS).close()
    except OSError:
        return False
    return True


@contextmanager
def hub_if_it_answers() -> Iterator[None]:
    """Run the body offline if the hub does not answer: its own client would try for a minute."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not hub_answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
