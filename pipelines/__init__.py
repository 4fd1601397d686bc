"""Bytes to batches, and teacher outputs to Arrow and back.

What a network sees is a pure function of (plan seed, view number, sample id): `views` gives the numbers, `data` the
images, `loaders` turn both into pixels, `cache` keeps a teacher's outputs. Where a batch goes, and on which rank,
is not decided here.
"""

from pathlib import Path

from kdcore.located import fetch_uris_by


def _fetched(uri: str) -> Path:
    from pipelines.remote_files import fetched  # only here: most processes fetch nothing

    return fetched(uri)


fetch_uris_by(_fetched)
