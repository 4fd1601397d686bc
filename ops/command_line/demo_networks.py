"""The arguments of `demo` that name networks for the user's own images."""

from __future__ import annotations

from ops.command_line.parser import Parser


def add_networks(parser: Parser) -> None:
    """Add --teacher and --student, each with a file of weights of any classes."""
    parser.add_argument(
        "--teacher", metavar="NAME", help="a timm model, fine-tuned on your data from timm's weights or a file's"
    )
    parser.add_place(
        "--teacher-weights", metavar="FILE", help="its weights, of ImageNet or other classes (default: timm's)"
    )
    parser.add_argument("--student", metavar="NAME", help="a timm model, trained afresh (default: the recipe's)")
    parser.add_place(
        "--student-weights", metavar="FILE|timm", help="what it starts from instead: a file, or timm's weights"
    )
