"""What a command's parser gives is what the command's function takes."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator

from ops.command_line.parser import Parser, build_parser, imported


def leaves(parser: Parser) -> Iterator[Parser]:
    """Yield the parsers of all commands and actions below a parser, with their arguments added."""
    if parser.add_arguments:
        parser.add_arguments(parser)
    inner = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    if not inner:
        yield parser
    for action in inner:
        for one in action.choices.values():
            yield from leaves(one)


def test_every_parameter_of_a_commands_function_is_an_argument_of_the_command():
    """`calls` hands arguments over by name: what is missing would be seen only when it is typed."""
    asked = 0
    for parser in leaves(build_parser()):
        names = {action.dest for action in parser._actions}
        for function in filter(None, parser.get_default("function").args):
            taken = set(inspect.signature(imported(function)).parameters)
            assert taken <= names, f"{parser.prog}: {function} takes {taken - names} as well"
            asked += 1
    assert asked >= 35


def test_every_argument_is_a_parameter_of_the_function():
    """An option that nobody reads would be accepted and ignored."""
    for parser in leaves(build_parser()):
        read = {
            name
            for function in filter(None, parser.get_default("function").args)
            for name in inspect.signature(imported(function)).parameters
        }
        ignored = {action.dest for action in parser._actions} - read - {"help", "plugin"}
        assert not ignored, f"{parser.prog} accepts {ignored} and does nothing with it"
