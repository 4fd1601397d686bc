"""The command for model hubs: `push`; `ops.command_line.students` has the command that makes an export."""

from __future__ import annotations

from ops.command_line.parser import Parser, calls, command


@command(
    "keep",
    help="upload an export to a repository on a model hub, in one commit",
    description="Sends the files and the card of an export to a repository on a hub, which is created, private, if "
    "there is none. The token is HF_TOKEN, or that of `hf auth login`. Local paths are cut to their last part.",
)
def push(parser: Parser) -> None:
    parser.add_place("folder", metavar="DIR", help="a folder that `export` has written")
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="the repository", dest="repository")
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    parser.add_argument("--message", help="commit message (default: the run and its method)")
    parser.add_argument("--hub", metavar="URL", help="another hub (default: HF_ENDPOINT, or huggingface_hub's own)")
    parser.set_defaults(function=calls("ops.export.push:push"))
