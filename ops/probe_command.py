"""What may be typed after `probe`."""

from __future__ import annotations

from ops.parser import Parser, add_overrides, calls, command


@command(
    "look",
    help="what the frozen features of student and teacher know of the classes",
    description="Judges a run's student, and its teacher where that answers online without a head, by what their "
    "classifiers read: nearest neighbours and a linear probe, both from a sample of the training images, and the share "
    "of nearest neighbours that both networks see alike.",
)
def probe(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run, or a file of weights in one")
    add_overrides(parser, "such as data.root=FOLDER")
    parser.set_defaults(function=calls("ops.probe:probe", "run", "overrides"))
