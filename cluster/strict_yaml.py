"""YAML as people mean it: what YAML 1.1 would read as something else in silence is refused.

A key twice (the last would win), 1:30 (ninety, in base sixty) and 010 (eight, in base eight).
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from kdcore.errors import Refused

_BASE_SIXTY = re.compile(r"^[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?$")
_BASE_EIGHT = re.compile(r"^[-+]?0[0-7_]+$")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which builds plain values only, without its silences."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping; a key twice is an error."""
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                name = self.construct_object(key, deep=True)
                if name in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {name!r} stands twice in one mapping; leave one out",
                        problem_mark=key.start_mark,
                    )
                seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """Build a number; one of base sixty or eight is an error."""
        text = str(node.value)
        if _BASE_SIXTY.match(text) or _BASE_EIGHT.match(text):
            raise yaml.constructor.ConstructorError(
                problem=f"YAML reads {text} as another number, in base {60 if ':' in text else 8}; write it out, or in "
                "quotes for a text",
                problem_mark=node.start_mark,
            )
        is_whole = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def read_yaml(text: str, place: str) -> Any:
    """Return the value of a YAML text. Refused, naming its place, for what is none, or ambiguous."""
    try:
        return yaml.load(text, Loader=_Loader)  # a safe loader
    except yaml.YAMLError as error:
        raise Refused(f"{place} is not YAML: {' '.join(str(error).split())}") from error
    except (TypeError, ValueError) as error:  # a list as a key; a date that is none
        raise Refused(f"{place} is not YAML: {' '.join(str(error).split())}") from error


def read_yaml_file(path: Path) -> Any:
    """Return the value of a YAML file, which is UTF-8. Refused for one that cannot be read."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror})") from error
    return read_yaml(text, str(path))
