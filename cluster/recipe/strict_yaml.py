"""YAML as people mean it: what YAML 1.1 would silently read as something else is refused.

A key twice (the last would win), 1:30 (ninety, in base sixty), 010 (eight, in base eight), 2020-01-01 (a date), a key
that is not text, and a tag that makes something else of a value. Input that attacks its reader is refused, too: endless
values, endless nesting, or characters that no file can hold.

And 1e-8 is a number, as in YAML 1.2: YAML 1.1 wants a point and a sign (1.0e-8), and otherwise reads text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from kdcore.errors import Refused, shortened

MAX_BYTES = 2**20  # of a file
MAX_VALUES = 100_000  # of a text, every alias counted as what it stands for
MAX_DEPTH = 50  # of nested lists and mappings
TOO_DEEP = f"more than {MAX_DEPTH} nested lists or mappings; flatten it"
MAX_NUMBER = 2**63  # every library here can hold whole numbers of a smaller size

_CORE = "tag:yaml.org,2002:"
_KINDS = {_CORE + name for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}
_BASE_SIXTY = re.compile(r"^[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?$")
_BASE_EIGHT = re.compile(r"^[-+]?0[0-7_]+$")
_EXPONENT = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which builds only plain values, with errors for what it would misread silently."""

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:
        """Read an opening bracket; too many are refused here, since reading on takes time quadratic in them."""
        if self.flow_level >= MAX_DEPTH:
            raise yaml.scanner.ScannerError(problem=TOO_DEEP, problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping; a duplicate key, or one that is not text, is an error."""
        seen = set()
        for key, _ in node.value:
            if key.tag == _CORE + "merge":
                continue
            if key.tag != _CORE + "str":
                raise _error("a key is text; write it as such, in quotes if need be", key)
            if key.value in seen:
                raise _error(f"the key {key.value!r} appears twice in one mapping; leave one out", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """Build a number; one of base sixty or eight is an error, and so is one beyond what libraries can hold."""
        text = str(node.value)
        if _BASE_SIXTY.match(text) or _BASE_EIGHT.match(text):
            raise _error(
                f"YAML reads {text} as another number, in base {60 if ':' in text else 8}; write it out, or in quotes "
                "if it is text",
                node,
            )
        if node.tag != _CORE + "int":
            return self.construct_yaml_float(node)
        number = self.construct_yaml_int(node)
        if abs(number) >= MAX_NUMBER:
            raise _error("a whole number is too large; its size stays below 2**63", node)
        return number


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
for _kind in ("int", "float"):
    _Loader.add_constructor(_CORE + _kind, _Loader.construct_number)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes a text that the loader above would read as a number."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def write_yaml(value: Any) -> str:
    """Return plain values as YAML, in their order; `read_yaml` gives them back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def read_yaml(text: str, place: str) -> Any:
    """Return the value of a YAML text. Refused, naming its place, if it is not YAML or ambiguous."""
    loader = None
    try:
        loader = _Loader(text)  # a safe loader
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, loader, {})
        return loader.construct_document(node)
    except RecursionError:
        raise Refused(f"{place} is not YAML: {TOO_DEEP}") from None
    except (yaml.YAMLError, TypeError, ValueError) as error:  # a ValueError: a number of thousands of digits
        raise Refused(f"{place} is not YAML: {shortened(str(error), 400)}") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml_file(path: Path) -> Any:
    """Return the value of a YAML file, which is UTF-8. Refused for one that cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror})") from error
    if len(content) > MAX_BYTES:
        raise Refused(f"{path} is larger than {MAX_BYTES:,} bytes, so it is not a recipe; give the right file")
    return read_yaml(text, str(path))


def _check(node: yaml.Node, loader: _Loader, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Return (number of values, depth) of a node, aliases followed; raise a YAMLError for anything but plain values.

    known: the results for the nodes seen so far; None for one in progress.
    """
    if id(node) in known:
        counted = known[id(node)]
        if counted is None:
            raise _error("an alias refers to what contains it; write the value out", node)
        return counted
    known[id(node)] = None
    _check_kind(node, loader)
    num_values, depth = 1, 0
    for inner in _inner_nodes(node):
        num_inner, inner_depth = _check(inner, loader, known)
        num_values, depth = num_values + num_inner, max(depth, inner_depth + 1)
    if num_values > MAX_VALUES:
        raise _error(f"with its aliases written out it has more than {MAX_VALUES:,} values; write fewer", node)
    if depth > MAX_DEPTH:
        raise _error(TOO_DEEP, node)
    known[id(node)] = num_values, depth
    return num_values, depth


def _inner_nodes(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [inner for pair in node.value for inner in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _check_kind(node: yaml.Node, loader: _Loader) -> None:
    """Refuse a node that is not of YAML's plain kinds, or whose tag makes it a kind that it does not look like."""
    if node.tag == _CORE + "timestamp":
        raise _error(f"YAML reads {node.value} as a date; write it in quotes if it is text", node)
    if node.tag not in _KINDS:
        raise _error(f"the tag {node.tag!r} is not known here; leave it out", node)
    if not isinstance(node, yaml.ScalarNode):
        if node.tag not in (loader.DEFAULT_SEQUENCE_TAG, loader.DEFAULT_MAPPING_TAG):
            raise _error(f"the tag {node.tag!r} does not fit its value; leave it out", node)
        return
    if node.tag != _CORE + "str" and loader.resolve(yaml.ScalarNode, node.value, (True, False)) != node.tag:
        raise _error(f"the tag {node.tag!r} does not fit {shortened(node.value)!r}; leave it out", node)
    if unfit := unfit_characters(node.value):
        raise _error(f"a text holds the character {unfit[0]!r}, which no file name or page can; leave it out", node)


def unfit_characters(text: str) -> str:
    """Return the characters of a text that cannot be written to a file: control characters, lone surrogates."""
    return "".join(c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n")


def _error(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
