"""The files of an export by name, which it alone has in its folder; `lineage.json` holds their digests.

An export begins by removing those of an earlier one, so that no file of another network lies beside its own. What
somebody adds to the folder (a licence, a note) is no file of the export, and is left as it is; a folder that has files
of these names without an export is refused.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from kdcore.errors import Refused
from kdcore.local_dir import CONFIG, WEIGHTS
from ops.limits import PRECISIONS
from pipelines.cache.manifest import MANIFEST
from pipelines.cache.store import checksum
from pipelines.files import read_object, write_json

CARD = "README.md"  # the last file that an export writes
LINEAGE, SIGNATURE = "lineage.json", "signature.json"
NEEDED = (CONFIG, WEIGHTS, "model.pt2", "model.onnx", "predict.py", LINEAGE, CARD)
FILES = (*NEEDED, *(f"model.{precision}.onnx" for precision in PRECISIONS))


def remove_earlier(folder: Path) -> None:
    """Remove the files of an earlier export, and its signature: the card first, with which an export is whole.

    A lineage of no files stands there meanwhile, by which an export that was cut off is known as one. Refused where
    files of these names lie without a lineage: somebody else's.
    """
    if not (folder / LINEAGE).is_file():
        for name in FILES:
            if (folder / name).exists():
                raise Refused(
                    f"{folder / name} does not belong to an export; give an empty or new folder, or move it away"
                )
    (folder / CARD).unlink(missing_ok=True)
    write_json(folder / LINEAGE, {"files": {}})
    signature = [] if (folder / MANIFEST).is_file() else [SIGNATURE]  # beside a manifest it is the cache's
    for name in (*FILES, *signature):
        if name != LINEAGE:
            (folder / name).unlink(missing_ok=True)


def digests_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of an export that is there, but for those that are written after it is known."""
    names = (name for name in FILES if name not in (LINEAGE, CARD))
    return {name: checksum(folder / name) for name in names if (folder / name).is_file()}


def exporting(folder: Path) -> str:
    """Return the command that writes an export, to be shown."""
    return shlex.join(["python", "-m", "ops", "export", "RUN", "-o", str(folder)])


def refuse_others(folder: Path) -> None:
    """Refuse a folder with a file of an export's name that this export has not written.

    Exports that recorded no digests, as earlier versions wrote them, pass.
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
