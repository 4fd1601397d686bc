"""How the command line is parsed and explained. Light on purpose: --help must not wait for torch and Ray.

The commands themselves are in the COMMAND_MODULES.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdcore import __version__
from kdcore.importing import importing

PROGRAM = "stillhouse" if Path(sys.argv[0]).name == "stillhouse" else "python -m ops"
COMMAND_MODULES = (
    "ops.command_line.commands",
    "ops.command_line.clusters",
    "ops.command_line.students",
    "ops.command_line.signing",
    "ops.command_line.hubs",
    "ops.capacity.command",
    "ops.reproduce.command",
)
DESCRIPTION = "Distils big image classifiers into small ones."
GROUPS = {
    "run": "train",
    "look": "inspect recipes, teachers, students and results",
    "keep": "handle what outlives a run",
    "prepare": "before the first run",
}
EXAMPLES = (
    f"{PROGRAM} demo",
    f"{PROGRAM} train kd data.root=FOLDER teacher.checkpoint=FILE train.epochs=50",
    f"{PROGRAM} sweep kd --space SPACE.yaml --plan data.root=FOLDER",
)
EPILOG = (
    "exit status: 0 success; 1 a run failed; 2 the request was refused, with one line that says what to do; 70 a bug "
    "in the program; 130 Ctrl-C; 143 SIGTERM"
)

Function = Callable[[argparse.Namespace], int]

# What refuses a command's recipe or run before its module is imported; see `calls`.
RECIPE, SUBJECT = "ops.catalog:require_recipe", "ops.evaluation.subjects:require_subject"
PREDICTED = "ops.evaluation.subjects:require_predicted"


class Parser(argparse.ArgumentParser):
    """A command's parser.

    It takes key=value before and after options; argparse itself takes positional arguments only in one group.
    add_arguments: called when this command is parsed, not for the other commands.
    """

    def __init__(self, *args: Any, add_arguments: Callable[[Parser], None] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_arguments = add_arguments

    def add_place(self, *names: str, **options: Any) -> None:
        """Add an argument that names a file, a folder or a URI: a job needs one that every node sees (`ops.submit`)."""
        action = self.add_argument(*names, **options)
        self.set_defaults(places=(*(self.get_default("places") or ()), action.dest))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Add the arguments, then parse as argparse does."""
        add, self.add_arguments = self.add_arguments, None
        if add is not None:
            add(self)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, with every key=value among the overrides, and `~` expanded where no shell does: `--output=~/runs`."""
        parsed, rest = self.parse_known_args(args, namespace)
        unknown = [word for word in rest if word.startswith("-") or "=" not in word]
        if unknown or (rest and not hasattr(parsed, "overrides")):
            self.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
        if rest:
            parsed.overrides = [*parsed.overrides, *rest]
        if getattr(parsed, "plugin", None) and hasattr(parsed, "overrides"):
            parsed.overrides = [*parsed.overrides, *(f"plugins+={json.dumps(plugin)}" for plugin in parsed.plugin)]
        for name, value in vars(parsed).items():
            if isinstance(value, str) and value.startswith("~/"):
                setattr(parsed, name, str(Path(value).expanduser()))
        return parsed


def add_plugin_option(parser: argparse.ArgumentParser) -> None:
    """Add --plugin, which a command with a recipe takes as `plugins+=MODULE`."""
    parser.add_argument(
        "--plugin",
        action="append",
        metavar="MODULE",
        help="your own module, file (./my_losses.py) or package folder, imported in every process; repeatable",
    )


@dataclass(frozen=True)
class Command:
    """A command: its group and one line in the list, its own help, and what adds its arguments."""

    name: str
    group: str
    help: str
    description: str
    epilog: str | None
    add_arguments: Callable[[Parser], None]


COMMANDS: dict[str, Command] = {}


def command(
    group: str, *, help: str, description: str, epilog: str | None = None
) -> Callable[[Callable[[Parser], None]], Callable[[Parser], None]]:
    """Register the decorated function, which adds a command's arguments, as the command of its name."""

    def register(add_arguments: Callable[[Parser], None]) -> Callable[[Parser], None]:
        name = add_arguments.__name__
        COMMANDS[name] = Command(name, group, help, description, epilog, add_arguments)
        return add_arguments

    return register


class TopParser(Parser):
    """The parser of the whole program, whose help lists the commands by group."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; an unknown command is refused with the nearest ones."""
        words = [word for word in (sys.argv[1:] if args is None else args) if not word.startswith("-")]
        if words and words[0] not in COMMANDS:
            near = difflib.get_close_matches(words[0], COMMANDS, n=2)
            remedy = f"did you mean {' or '.join(near)}?" if near else "--help lists them"
            self.error(f"there is no command {words[0]!r}; {remedy}")
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        """Return the help text: usage, commands by group, options, examples, exit status."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for group, meaning in GROUPS.items():
            formatter.start_section(f"{group} ({meaning})")
            for listed in COMMANDS.values():
                if listed.group == group:
                    formatter.add_argument(
                        argparse.Action([], listed.name, nargs=0, metavar=listed.name, help=listed.help)
                    )
            formatter.end_section()
        formatter.start_section("options")
        formatter.add_arguments([action for action in self._actions if action.option_strings])
        formatter.end_section()
        text = formatter.format_help()
        examples = "\n".join(f"  {example}" for example in EXAMPLES)
        ending = self._get_formatter()
        ending.add_text(self.epilog)
        return f"{text}\nexamples:\n{examples}\n\n{ending.format_help()}"


def build_parser() -> Parser:
    """Return the parser; `args.function(args)` of its result does the work and returns the exit status."""
    for module in COMMAND_MODULES:
        importlib.import_module(module)  # registers them
    parser = TopParser(prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    parser.add_argument("--version", action="version", version=f"stillhouse {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for one in COMMANDS.values():
        commands.add_parser(
            one.name, help=one.help, description=one.description, epilog=one.epilog, add_arguments=one.add_arguments
        )
    return parser


def calls(function: str, require: str | None = None) -> Function:
    """Return a function that calls `module:function` with the arguments that its parameters name.

    The module is imported only then. require: `module:function` of a light module, called before that; it refuses what
    is missing, without waiting for torch.
    """
    return partial(_call, function, require)


def _call(function: str, require: str | None, args: argparse.Namespace) -> int:
    if require is not None:
        _call(require, None, args)
    found = imported(function)
    status: int = found(**{name: getattr(args, name) for name in inspect.signature(found).parameters})
    return status


def imported(function: str) -> Callable[..., Any]:
    """Return `module:function`, after importing the module."""
    module, _, name = function.partition(":")
    with importing(module):
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def goes_on(parser: Parser, how: str = "continues from the last checkpoint") -> None:
    """Have an interrupted command print that the same command resumes, and how."""
    parser.set_defaults(when_interrupted=f"the same command {how}")


def add_overrides(parser: Parser, help: str) -> None:
    """Add the key=value arguments, which override fields of a recipe."""
    add_plugin_option(parser)
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=help)


def add_recipe(parser: Parser) -> None:
    """Add a recipe and the overrides of its fields."""
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a YAML file, or the name of a built-in recipe (see `recipes`), such as kd"
    )
    add_overrides(parser, "recipe fields to override, such as train.epochs=5")
