"""The command line of `data`: its actions with their arguments."""

from __future__ import annotations

from typing import Any

from ops.command_line.parser import Parser, add_plugin_option, calls, goes_on


def add_data_actions(parser: Parser, index_dir: str) -> None:
    """Add the actions of `data`. index_dir: the default folder of indexes."""
    from pipelines.data.broken import CHECKS
    from pipelines.data.images import MAX_PIXELS
    from pipelines.data.pack import SHARD_BYTES

    actions: Any = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="index a source's splits, and print what they hold")
    pack = actions.add_parser(
        "pack",
        help="pack a source into Arrow shards, or resume packing",
        description="Every image is read, checked and put into Arrow shards, which are then read back: on the Ray "
        "cluster that RAY_ADDRESS names, else in this process. The same command resumes an interrupted pack.",
    )
    verify = actions.add_parser("verify", help="read every byte of a pack")
    for action in (show, pack):
        action.add_place("root", metavar="SOURCE", help="the folder or URI of the images")
        action.add_place(
            "--index", dest="index_dir", default=index_dir, metavar="DIR", help="folder of the indexes (%(default)s)"
        )
        add_plugin_option(action)
        action.add_argument("--skip-broken", action="store_true", help="leave out broken images, up to 1%% of a split")
        action.add_argument(
            "--check",
            choices=CHECKS,
            default=CHECKS[0],
            help="what to read of each image: its headers, or all of it (default: headers)",
        )
        pixels = "treat images with more pixels as broken (%(default)s)"
        action.add_argument("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help=pixels)
    verify.add_place("root", metavar="PLACE", help="the folder or URI of the pack")
    for action in (show, pack, verify):
        action.add_argument(
            "--split",
            dest="splits",
            action="append",
            default=[],
            metavar="NAME",
            help="a split; repeatable (default: train and val)",
        )
    show.add_argument("--relist", action="store_true", help="list every file again, even if a folder looks unchanged")
    pack.add_place(
        "-o", "--output", dest="target", required=True, metavar="PLACE", help="a folder, or a URI: s3://bucket/folder"
    )
    pack.add_argument("--max-side", type=int, metavar="N", help="shrink images whose longer side exceeds N pixels")
    pack.add_argument("--quality", type=int, metavar="Q", help="store all images as JPEG of this quality")
    shard_mib = SHARD_BYTES // 2**20
    pack.add_argument("--shard-mib", type=int, default=shard_mib, metavar="N", help="shard size in MiB (%(default)s)")
    pack.add_argument(
        "--teacher", metavar="RECIPE", help="measure how much accuracy this recipe's teacher loses on the packed images"
    )
    show.set_defaults(function=calls("ops.data:show_source"))
    pack.set_defaults(function=calls("ops.data:pack"))
    goes_on(pack, "continues the pack")
    verify.set_defaults(function=calls("ops.data:verify"))
    _add_cifar100(actions)


def _add_cifar100(actions: Any) -> None:
    cifar100 = actions.add_parser(
        "cifar100",
        help="unpack the published CIFAR-100 into an image folder",
        description="Unpacks CIFAR-100 into an image folder: from Parquet files (train-*.parquet and test-*.parquet, "
        "with columns img and fine_label), or from the authors' cifar-100-python folder, whose pickles are opened only "
        "with the published checksums.",
    )
    cifar100.add_place(
        "--from",
        dest="source",
        required=True,
        metavar="DIR",
        help="the folder with the Parquet files, or with cifar-100-python",
    )
    cifar100.add_place(
        "--to", dest="target", default="data/cifar100", metavar="DIR", help="the folder to write (%(default)s)"
    )
    cifar100.set_defaults(function=calls("ops.cifar100.images:unpack"))
