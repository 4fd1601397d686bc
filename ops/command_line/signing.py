"""The commands for keys and signatures; `lineage`, which verifies them, is in `ops.command_line.students`."""

from __future__ import annotations

from ops.command_line.parser import Parser, calls, command


@command(
    "keep",
    help="generate a key pair for `sign`",
    description="Generates an Ed25519 key as a PEM file that only its owner may read, with its public key next to "
    "it, as .pub. OpenSSL makes and reads the same files.",
)
def keys(parser: Parser) -> None:
    parser.add_place("file", metavar="FILE", help="where the private key goes, such as ~/.keys/maria.pem")
    parser.set_defaults(function=calls("ops.export.keys:keys"))


@command(
    "keep",
    help="sign a cache, or an export with its model card",
    description="Signs the digests of a finished cache, or of every file of an export, its model card and its lineage "
    "among them. `lineage DIR --trust FILE` says whose signature it is and what has changed since.",
)
def sign(parser: Parser) -> None:
    parser.add_place("folder", metavar="DIR", help="an export, or a cache")
    parser.add_place("--key", required=True, metavar="FILE", help="the private key: a PEM file of mode 600")
    parser.set_defaults(function=calls("ops.export.signing:sign"))
