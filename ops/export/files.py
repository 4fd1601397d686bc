"""The files of an export by name, which only the export may write in its folder; `lineage.json` holds their digests.

An export begins by removing those of an earlier one, so that no file of another network lies next to its own. What a
user adds to the folder (a licence, a note) is not part of the export, and is left as it is; a folder that has files of
these names without an export is refused.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from kdcore.errors import Refused
from kdcore.local_dir import CONFIG, WEIGHTS
from ops.command_line.limits import PRECISIONS
from ops.evaluation.subjects import LINEAGE
from pipelines.cache.manifest import MANIFEST
from pipelines.cache.store import checksum
from pipelines.files import read_object, write_json

CARD = "README.md"  # the last file that an export writes
SIGNATURE = "signature.json"
PROGRAM = "model.pt2"
NEEDED = (CONFIG, WEIGHTS, PROGRAM, "model.onnx", "predict.py", LINEAGE, CARD)
FILES = (*NEEDED, *(f"model.{precision}.onnx" for precision in PRECISIONS))


def remove_earlier(folder: Path) -> None:
    """Remove the files of an earlier export and its signature, the card first: without it an export is incomplete.

    In the meantime a lineage without files marks the folder, so that an interrupted export is recognised. Refused where
    files of these names lie without a lineage: they belong to something else.
    """
    if not (folder / LINEAGE).is_file():
        for name in FILES:
            if (folder / name).exists():
                raise Refused(
                    f"{folder / name} does not belong to an export; give an empty or new folder, or move it away"
                )
    (folder / CARD).unlink(missing_ok=True)
    write_json(folder / LINEAGE, {"files": {}})
    signature = [] if (folder / MANIFEST).is_file() else [SIGNATURE]  # next to a manifest it is the cache's
    for name in (*FILES, *signature):
        if name != LINEAGE:
            (folder / name).unlink(missing_ok=True)


def digests_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each existing file of an export, except those that are written after the digests."""
    names = (name for name in FILES if name not in (LINEAGE, CARD))
    return {name: checksum(folder / name) for name in names if (folder / name).is_file()}


def exporting(folder: Path) -> str:
    """Return the command that writes an export, for messages."""
    return shlex.join(["python", "-m", "ops", "export", "RUN", "-o", str(folder)])


def refuse_others(folder: Path) -> None:
    """Refuse a folder with a file of an export's name that this export did not write.

    Exports of earlier versions, which recorded no digests, pass.
    """
    recorded = read_object(folder / LINEAGE, "export the run again").get("files")
    if recorded is None:
        return
    for name, digest in digests_of(folder).items():
        if not isinstance(recorded, dict) or recorded.get(name) != digest:
            raise Refused(
                f"{folder / name} is not the file that {LINEAGE} records; run `{exporting(folder)}` to its end, or "
                "move that file away"
            )
