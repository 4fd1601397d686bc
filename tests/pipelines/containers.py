"""One image folder's split in every container, rows of most of them in an order of their own."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.index import build_index
from pipelines.data.packing import SourcePacking, build_pack
from pipelines.places import Place


def images_of(root: Path, split: str) -> list[tuple[Path, int]]:
    """(file, label) of a split, shuffled."""
    classes = sorted(path.name for path in (root / split).iterdir())
    files = sorted((root / split).rglob("*.*"))
    order = np.random.default_rng(0).permutation(len(files))
    return [(files[i], classes.index(files[i].parent.name)) for i in order]


def classes_of(root: Path, split: str) -> list[str]:
    return sorted(path.name for path in (root / split).iterdir())


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_folder(root: Path, split: str, out: Path) -> None:
    shutil.copytree(root / split, out / split)


def write_tar_of_folders(root: Path, split: str, out: Path) -> None:
    """`tar cf out/<split>.tar ./<split>`."""
    with tarfile.open(out / f"{split}.tar", "w") as tar:
        tar.add(root / split, f"./{split}")


def write_webdataset(root: Path, split: str, out: Path) -> None:
    """Two shards with labels in .cls files, by number; the names of the classes in classes.txt."""
    (out / split).mkdir()
    images = images_of(root, split)
    for shard, some in enumerate((images[::2], images[1::2])):
        with tarfile.open(out / split / f"{shard:04d}.tar", "w") as tar:
            for file, label in some:
                add(tar, f"{label}/{file.name}", file.read_bytes())
                add(tar, f"{label}/{file.stem}.cls", str(label).encode())
    (out / "classes.txt").write_text("\n".join(classes_of(root, split)))


def write_webdataset_with_json(root: Path, split: str, out: Path) -> None:
    """As timm's are: other keys, suffixes in small letters, and the original names in .json, beside the class's."""
    with tarfile.open(out / f"images-{split}-0000.tar", "w") as tar:
        for number, (file, label) in enumerate(images_of(root, split)):
            facts = {"filename": file.name, "label": classes_of(root, split)[label], "width": 1}
            add(tar, f"{number:06d}.json", json.dumps(facts).encode())
            add(tar, f"{number:06d}{file.suffix.lower()}", file.read_bytes())


def write_parquet(root: Path, split: str, out: Path) -> None:
    """As on the hub: data/<split>-0000x-of-00002.parquet, small row groups, names of classes in the metadata."""
    images = images_of(root, split)
    (out / "data").mkdir(exist_ok=True)
    label = {"names": classes_of(root, split), "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})}
    for number, some in enumerate((images[:5], images[5:])):
        rows = [{"bytes": file.read_bytes(), "path": file.name} for file, _ in some]
        table = pa.table({"image": rows, "label": [label for _, label in some]}).replace_schema_metadata(metadata)
        pq.write_table(table, out / "data" / f"{split}-{number:05d}-of-00002.parquet", row_group_size=3)


def write_csv(root: Path, split: str, out: Path) -> None:
    """<split>.csv with paths of files in folders of other names."""
    lines = ["label,path"]
    for file, label in images_of(root, split):
        path = f"files/{split}-{label}/{file.name}"
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, out / path)
        lines.append(f"{file.parent.name},{path}")
    (out / f"{split}.csv").write_text("\n".join(lines))


def write_pack(root: Path, split: str, out: Path) -> None:
    """Of three small shards or more."""
    source = build_index(root, split, out / "unpacked-index", progress=False)
    shard_bytes = int(source.table["num_bytes"].to_numpy().sum()) // 3
    build_pack(SourcePacking(source, shard_bytes), Place.of(out, "place"), split)


def write_compressed_tars(root: Path, split: str, out: Path) -> None:
    """The shards of `write_webdataset`, one by gzip in parts and one by zstd."""
    write_webdataset(root, split, out)
    plain = sorted((out / split).glob("*.tar"))
    content = plain[0].read_bytes()
    compressed = gzip.compress(content[:5000]) + gzip.compress(content[5000:])
    plain[0].with_suffix(".tar.gz").write_bytes(compressed)
    with pa.CompressedOutputStream(str(plain[1].with_suffix(".tar.zst")), "zstd") as file:
        file.write(plain[1].read_bytes())
    for path in plain:
        path.unlink()


CONTAINERS: dict[str, Callable[[Path, str, Path], None]] = {
    "folder": write_folder,
    "tar of folders": write_tar_of_folders,
    "webdataset": write_webdataset,
    "webdataset with json": write_webdataset_with_json,
    "parquet": write_parquet,
    "compressed tars": write_compressed_tars,
    "csv": write_csv,
    "pack": write_pack,
}
