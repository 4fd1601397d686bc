"""Values as a recipe writes them: YAML in one line."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import TypeAdapter


def written(value: Any) -> str:
    """Return a value as YAML in one line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list) and value and all(isinstance(item, float) for item in value):
        return f"[{', '.join(written(item) for item in value)}]"
    plain = TypeAdapter(Any).dump_python(value, mode="json")
    text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return text.removesuffix("\n...\n").strip()
