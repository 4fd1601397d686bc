"""`push`: an export as a repository on a model hub: its files, and its card as the repository's page.

All of it is one commit, which also removes files of an earlier export that this one does not have. Card and lineage
give only the last part of paths on this machine: strangers need no more, and a hub may be read by many. A signed export
is sent as it was signed, byte for byte, with its signature; its readers then see the whole paths.

The token is the one that `huggingface_hub` finds (HF_TOKEN, or its own login); it is not an argument, and no message
contains it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled

from cluster.weights import tensors_fingerprint
from kdcore import __version__
from kdcore.checkpoints import load_tensors
from kdcore.errors import Refused
from kdcore.local_dir import CONFIG, WEIGHTS
from kdcore.named_models import LOCAL_DIR
from ops.console import say
from ops.evaluation.subjects import LINEAGE
from ops.export.files import CARD, FILES, NEEDED, PROGRAM, SIGNATURE, exporting, refuse_others
from ops.export.lineage import read_lineage
from ops.export.programs import has_remarks
from ops.export.signing import covered, examine
from pipelines.leases import leased

PLACES = ("run_dir", "dir", "file")  # keys of a lineage whose values are places on the machine that exported
A_PATH = re.compile(r"(?<![\w.~/])(?:/[\w.@+~-]+){2,}")  # of a folder or a file, from the root
A_VALUE = re.compile(r"""(?<=: )(['"]?)(/[^'"\n]*)\1$""", re.MULTILINE)  # a path that is a line's whole value, in YAML


def push(folder: str, repository: str, public: bool, message: str | None, hub: str | None) -> int:
    """Send an export to a repository on a hub, which is created if missing. public: whether a new one is public.

    hub: its address; None: that of `huggingface_hub`. Refused for an incomplete export, and for whatever the hub
    refuses.
    """
    path = Path(folder)
    if not path.is_dir():
        raise Refused(f"{path} is not a folder; give one that `export` has written")
    with leased(path, "push"):
        exported = Exported.read(path)
        token = huggingface_hub.get_token()
        if token is None:
            raise Refused("there is no token for the hub; set HF_TOKEN, or log in once with `hf auth login`")
        address = (hub or huggingface_hub.constants.ENDPOINT).rstrip("/")
        api = HfApi(address, token, library_name="stillhouse", library_version=__version__)
        with hub_errors_as_refusals(address, repository, token):
            made = api.create_repo(repository, private=not public, exist_ok=True)
            stale = sorted(set(api.list_repo_files(made.repo_id)) & {*FILES, SIGNATURE} - exported.files.keys())
            additions = [CommitOperationAdd(name, content) for name, content in exported.files.items()]
            removals = [CommitOperationDelete(name) for name in stale]
            commit = api.create_commit(
                made.repo_id,
                [*additions, *removals],
                commit_message=message or f"{exported.lineage['run']}: {exported.lineage['method']}",
            )
    say(f"pushed: {', '.join(exported.files)}" + (f"; removed: {', '.join(stale)}" if stale else ""))
    say(f"{address}/{made.repo_id} ({commit.oid[:12]}); {exported.loading(made.repo_id)}")
    return 0


@dataclass(frozen=True)
class Exported:
    """A complete export. files: {name: the file's path, or the content sent instead}; lineage: its lineage.json."""

    files: dict[str, str | bytes]
    lineage: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Exported:
        """Return the export in a folder. Refused, with the remedy, where it is incomplete or its files have changed."""
        again = f"run `{exporting(folder)}` to its end"
        if missing := [name for name in NEEDED if not (folder / name).is_file()]:
            raise Refused(f"{folder} holds no finished export: it has no {missing[0]}; {again}")
        lineage = read_lineage(folder)
        if tensors_fingerprint(load_tensors(folder / WEIGHTS)) != lineage["weights"]:
            raise Refused(f"{folder / WEIGHTS} is not the file that {LINEAGE} records; {again}")
        refuse_others(folder)
        if has_remarks(folder / PROGRAM):
            raise Refused(
                f"{folder / PROGRAM} is of an earlier version, which left in it two of the images that it was exported "
                f"with, and folders of that machine; {again}"
            )
        if (folder / SIGNATURE).is_file():
            if (problem := examine(folder, {}).problem) is not None:
                raise Refused(f"{folder} is not as it was signed ({problem}); sign it again, or restore it")
            return cls({name: str(folder / name) for name in (*covered(folder), SIGNATURE)}, lineage)
        found: dict[str, str | bytes] = {name: str(folder / name) for name in FILES if (folder / name).is_file()}
        card = (folder / CARD).read_text("utf-8")
        found[CARD] = (front_matter(folder, is_of_timm(lineage)) + without_folders(card, places_in(lineage))).encode()
        found[LINEAGE] = (json.dumps(without_places(lineage), indent=2) + "\n").encode()
        return cls(found, lineage)

    def loading(self, repository: str) -> str:
        """Return the Python that loads the network from a hub: by timm alone where timm can build it."""
        if is_of_timm(self.lineage):
            return f"timm.create_model('hf-hub:{repository}', pretrained=True)"
        return f"torch.export.load(huggingface_hub.hf_hub_download('{repository}', 'model.pt2')).module()"


def is_of_timm(lineage: Mapping[str, Any]) -> bool:
    """Return whether timm alone can build an exported network; False for earlier exports, which do not say so."""
    return lineage.get("in_timm") is True


def front_matter(folder: Path, in_timm: bool) -> str:
    """Return the part of a card that the hub reads: the task, the library that loads the network, and tags."""
    model = json.loads((folder / CONFIG).read_text("utf-8"))["architecture"]
    library = ["library_name: timm"] if in_timm else []
    tags = ["image-classification", "knowledge-distillation", "onnx", "stillhouse", *(["timm"] if in_timm else [])]
    lines = ["pipeline_tag: image-classification", *library, f"tags: {json.dumps(tags)}", f"architecture: {model}"]
    return "\n".join(["---", *lines, "---", "", ""])


def places_in(lineage: Any) -> list[str]:
    """Return every place on the exporting machine that a lineage names, the longest first."""
    if isinstance(lineage, list):
        return sorted({place for one in lineage for place in places_in(one)}, key=len, reverse=True)
    if not isinstance(lineage, dict):
        return []
    own = [place for key, value in lineage.items() if (place := place_in(key, value)) is not None]
    return sorted({*own, *places_in(list(lineage.values()))}, key=len, reverse=True)


def place_in(key: str, value: Any) -> str | None:
    """Return the place that an entry of a lineage names; None for one that names none."""
    if not isinstance(value, str):
        return None
    if key == "model" and value.startswith(LOCAL_DIR):
        return value.removeprefix(LOCAL_DIR)
    return value if key in PLACES else None


def without_places(lineage: Any) -> Any:
    """Return a lineage with every place reduced to its name."""
    if isinstance(lineage, list):
        return [without_places(one) for one in lineage]
    if not isinstance(lineage, dict):
        return lineage
    places = {key: place for key, value in lineage.items() if (place := place_in(key, value))}
    named = {key: lineage[key].replace(place, PurePath(place).name) for key, place in places.items()}
    return {key: named[key] if key in named else without_places(value) for key, value in lineage.items()}


def without_folders(text: str, places: list[str]) -> str:
    """Return a text with the given places, and whatever else looks like an absolute path, reduced to their names."""
    for place in places:
        text = text.replace(place, PurePath(place).name)
    text = A_VALUE.sub(lambda found: PurePath(found.group(2)).name, text)
    return A_PATH.sub(lambda found: PurePath(found.group()).name, text)


@contextmanager
def hub_errors_as_refusals(address: str, repository: str, token: str) -> Iterator[None]:
    """Refuse what a hub refuses, and a hub that does not answer, in one line without the token."""
    try:
        yield
    except HFValidationError as error:
        raise Refused(f"--to {repository}: {first_line_without(error, token)}; give OWNER/NAME") from None
    except OfflineModeIsEnabled:
        raise Refused("HF_HUB_OFFLINE is set, which forbids any connection; unset it and push again") from None
    except HfHubHTTPError as error:
        raise Refused(reason_of(error, address, repository, token)) from None
    except Exception as error:
        if not is_of_the_network(error):
            raise
        raise Refused(
            f"the hub {address} does not answer ({first_line_without(error, token)}); push again when it does, or give "
            "another as --hub URL: a commit is made whole or not at all"
        ) from None


def reason_of(error: HfHubHTTPError, address: str, repository: str, token: str) -> str:
    """Return what a hub's answer means, and what to do."""
    status = error.response.status_code
    if status == 401:
        return f"the hub {address} rejects the token; set HF_TOKEN to a valid one with write access"
    if status == 403:
        return f"the token may not write to {repository} on {address}; use one that may, or another --to"
    said = first_line_without(error.server_message or error, token)
    return f"the hub {address} answers with {status} ({said}); push again, nothing of this export was committed"


def is_of_the_network(error: BaseException) -> bool:
    """Return whether a failed connection is the error itself or among its causes."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    return any(isinstance(one, HTTPError | ConnectionError | TimeoutError) for one in causes)


def first_line_without(error: object, token: str) -> str:
    """Return a message's first line, shortened, without the token."""
    lines = [line.strip() for line in str(error).replace(token, "***").splitlines() if line.strip()]
    return lines[0][:200].rstrip(".") if lines else type(error).__name__
