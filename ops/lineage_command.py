"""What may be typed after `lineage`."""

from __future__ import annotations

from ops.parser import Parser, calls, command


@command(
    "keep",
    help="what an exported network was made of, back to the first teacher; verified",
    description="Prints the chain teacher, cache, run, export behind an exported network, and further back where its "
    "teacher was an export itself. Links whose files are here are computed anew and compared.",
)
def lineage(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a folder that `export` has written")
    parser.set_defaults(function=calls("ops.lineage:lineage", "folder"))
