"""Removes credentials from whatever is written or printed: passwords and keys in URIs, and those in the environment.

What is left of a URI is still an address: it works where the environment, or a user's file, has the credentials
(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, AWS_ACCESS_KEY_ID, PGPASSWORD, ...).
"""

from __future__ import annotations

import os
import re
from typing import Any

_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>[^\s\"'<>`]+)")
# Up to the last @ before the path, or past it: an unescaped slash in a password is invalid, but occurs.
_USER = re.compile(r"[^/?#]*@|[^/?#@:]*:(?!\d*(?:[/?#]|$))[^@]*@")
_SECRET = re.compile(
    r"secret|token|passw|pwd|credential|signature|(^|[-_])sig$|access_?key|api_?key|account_?key", re.IGNORECASE
)
# For these the user name is kept: it says whose database it is, and gives no access without the password.
_DATABASES = ("postgresql", "postgres", "mysql", "mssql", "oracle", "mariadb")
_VARIABLE = re.compile(r"(^|_)(SECRET|PASSWORD|PASSWD|PGPASSWORD|TOKEN|ACCESS_KEY|API_KEY)(_KEY|_ID)?$")
_SHORTEST = 12  # characters: shorter values in the environment are not searched for in texts


def without_credentials(text: str) -> str:
    """Return a text with the passwords, keys and tokens left out of its URIs, and *** for those of the environment."""
    text = _URI.sub(_without_credentials, text) if "://" in text else text
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _VARIABLE.search(name):
            text = text.replace(value, "***")
    return text


def has_credentials(text: str) -> bool:
    """Return whether a text holds credentials."""
    return without_credentials(text) != text


def public(value: Any) -> Any:
    """Return plain nested values with the credentials removed from every text in them."""
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, dict):
        return {key: public(inner) for key, inner in value.items()}
    return [public(inner) for inner in value] if isinstance(value, list | tuple) else value


def _without_credentials(uri: re.Match[str]) -> str:
    scheme, rest = uri["scheme"], uri["rest"]
    if user := _USER.match(rest):
        name = user.group().rstrip("@").partition(":")[0]
        is_database = scheme.partition("+")[0] in _DATABASES
        rest = (f"{name}@" if is_database and name else "") + rest[user.end() :]
    address, question, query = rest.partition("?")
    kept = [option for option in query.split("&") if not _SECRET.search(option.partition("=")[0])]
    return f"{scheme}://{address}" + (question + "&".join(kept) if any(kept) else "")
