"""Images in an object store: the same identity, ranged reads alone, a node's copy, and a store that fails."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from kdcore.errors import Refused, RunFailed
from pipelines.data import store as store_files
from pipelines.data.convert import PackJob, run_pack_job
from pipelines.data.copies import CopyPolicy, Extent, LocalCopy
from pipelines.data.index import build_index, open_index
from pipelines.data.shards import in_windows, windows_of
from pipelines.data.source import Source
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy
from tests.pipelines.containers import CONTAINERS
from tests.pipelines.pictures import write_plain_folder
from tests.pipelines.stores import FailingProxy, s3_server, store, uri, use_test_credentials

NUM = 40


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def bucket(port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, and an environment in which s3:// means this server."""
    use_test_credentials(monkeypatch)
    monkeypatch.setattr(store_files, "_FIRST_WAIT_SECONDS", 0.01)
    filesystem = store(port)
    if filesystem.get_file_info("bucket").type != fs.FileType.NotFound:
        filesystem.delete_dir("bucket")
    filesystem.create_dir("bucket")
    return "bucket"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("original")
    write_plain_folder(root, num=NUM, side=64)
    return root


@pytest.fixture(scope="module")
def expected(folder: Path) -> Source:
    return build_index(folder, "train", folder / "index", progress=False)


def upload(place: Path, port: int, bucket: str) -> None:
    fs.copy_files(str(place), f"{bucket}/images", fs.LocalFileSystem(), store(port))


@pytest.mark.parametrize("container", [name for name in CONTAINERS if name != "csv"])
def test_one_identity(container: str, folder: Path, expected: Source, bucket: str, port: int, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    CONTAINERS[container](folder, "train", tmp_path / "made")
    upload(tmp_path / "made", port, bucket)
    root, ids = uri(bucket, port), np.random.default_rng(0).permutation(NUM)
    policy = CopyPolicy(str(tmp_path / "copies"))
    source = build_index(root, "train", tmp_path / "index", progress=False, copies=policy)
    assert (source.fingerprint, source.classes) == (expected.fingerprint, expected.classes)
    assert source.read(ids) == expected.read(ids)
    again = pickle.loads(pickle.dumps(open_index(root, "train", tmp_path / "index", policy)))
    assert again.read(ids) == expected.read(ids)
    assert again.subset(ids[:9]).read(np.arange(9)) == expected.read(ids[:9])


@pytest.fixture
def packed(folder: Path, expected: Source, bucket: str, port: int, tmp_path: Path) -> str:
    """The URI of a pack of several shards, written to the store by this project."""
    shard_bytes = int(expected.table["num_bytes"].to_numpy().sum()) // 4
    job = PackJob(str(folder), "train", uri(bucket, port), str(tmp_path / "pack-index"), shard_bytes)
    assert run_pack_job(job, job.prepare()).fingerprint == expected.fingerprint
    return uri(bucket, port)


def opened(root: str, tmp_path: Path, copies: CopyPolicy | None = None) -> Source:
    return build_index(root, "train", tmp_path / "index", progress=False, copies=copies)


def test_only_what_is_asked_for_is_read(packed: str, port: int, expected: Source, tmp_path: Path) -> None:
    """A range a sample, and nothing more; nothing at all for what the node's copy holds."""
    proxy = FailingProxy(port)
    root = packed.replace(str(port), str(proxy.port))
    source = opened(root, tmp_path, CopyPolicy(str(tmp_path / "copies")))
    proxy.requests.clear()
    ids = np.array([3, 17, 30])
    assert source.read(ids) == expected.read(ids)
    gets = [line for line in proxy.requests if line.startswith("GET")]
    assert 1 <= len(gets) <= 3, "neighbours come together"
    proxy.close()
    assert source.read(ids[::-1]) == expected.read(ids[::-1])
    other = open_index(root, "train", tmp_path / "index", CopyPolicy(str(tmp_path / "copies")))
    assert other._storage.read(ids) == expected.read(ids)  # type: ignore[attr-defined]


@pytest.mark.parametrize("failure", ["cut", "500"])
def test_failures_in_between(failure: str, packed: str, port: int, expected: Source, tmp_path: Path) -> None:
    """Every third connection fails, in one way or the other; what is read is what was packed."""
    proxy = FailingProxy(port, lambda number: failure if number % 3 == 1 else None)
    source = opened(packed.replace(str(port), str(proxy.port)), tmp_path)
    ids = np.random.default_rng(1).permutation(NUM)
    for part in np.array_split(ids, 8):
        assert source.read(part) == expected.read(part)
    assert len(proxy.failed) >= 3
    proxy.close()


def test_a_store_that_is_gone_ends_the_run(
    packed: str, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_files, "_TRIES", 2)
    proxy = FailingProxy(port)
    source = opened(packed.replace(str(port), str(proxy.port)), tmp_path)
    proxy.fail = lambda number: "403"  # which Arrow does not itself try again for a minute
    with pytest.raises(RunFailed, match=r"^s3://bucket/images/train/shard-\d+.arrow could not be read in \d tries \("):
        source.read(np.arange(3))
    proxy.close()


def test_no_rights_and_no_bucket(bucket: str, port: int, tmp_path: Path) -> None:
    proxy = FailingProxy(port, lambda number: "403")
    with pytest.raises(Refused, match=r"^s3://bucket/images/train cannot be read \(.*ACCESS_DENIED.*\); check that"):
        opened(uri(bucket, proxy.port), tmp_path)
    proxy.close()
    with pytest.raises(Refused, match=r"s3://bucket/images holds no images, pack, tars or Parquet files of split"):
        opened(uri(bucket, port), tmp_path)
    with pytest.raises(Refused, match=r"data.root=gopher://x: .*; give a folder, or a URI that pyarrow.fs knows"):
        opened("gopher://x", tmp_path)


def test_a_shard_that_was_changed(packed: str, port: int, tmp_path: Path) -> None:
    source = opened(packed, tmp_path)
    with store(port).open_output_stream("bucket/images/train/shard-00000.arrow") as file:
        file.write(b"cut off")
    with pytest.raises(Refused, match=r"shard-00000.arrow was changed, cut off or removed after it was indexed"):
        source.read(np.arange(NUM))


def test_a_copy_keeps_no_more_than_it_may(packed: str, expected: Source, tmp_path: Path) -> None:
    total = int(expected.table["num_bytes"].to_numpy().sum())
    policy = CopyPolicy(str(tmp_path / "copies"), total // 2)
    source = opened(packed, tmp_path, policy)
    for _ in range(2):
        assert source.read(np.arange(NUM)) == expected.read(np.arange(NUM))
    kept = source._storage.kept_bytes  # type: ignore[attr-defined]
    assert total // 3 < kept <= total // 2
    assert _disk_bytes(tmp_path / "copies") < total // 2 + 64 * 1024


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def sample(byte: bytes) -> tuple[Extent, bytes]:
    content = byte * 60
    return Extent(row=0, file=0, offset=0, num_bytes=60, crc32=zlib.crc32(content)), content


def test_copies_that_nobody_uses_make_room(tmp_path: Path) -> None:
    policy = CopyPolicy(str(tmp_path), 100)
    first = LocalCopy(policy, "first", file_bytes=[80], num_rows=1)
    first.keep(*sample(b"x"))
    second = LocalCopy(policy, "second", file_bytes=[80], num_rows=1)
    second.keep(*sample(b"y"))
    assert (first.kept_bytes, second.kept_bytes) == (60, 0), "the first is in use, so that 20 bytes are left"
    del first
    third = LocalCopy(policy, "third", file_bytes=[80], num_rows=1)
    third.keep(*sample(b"z"))
    assert third.kept_bytes == 60
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_single_images(folder: Path, expected: Source, bucket: str, port: int, tmp_path: Path) -> None:
    """A request each and none for what a copy holds; a new image is noticed at the next start; packed from there."""
    upload(folder, port, bucket)
    proxy = FailingProxy(port, lambda number: {1: "cut", 3: "500"}.get(number % 8))
    root, ids = uri(bucket, proxy.port), np.random.default_rng(0).permutation(NUM)
    source = opened(root, tmp_path, CopyPolicy(str(tmp_path / "copies")))
    held = source.split(0.2, 1)[1]
    assert source.read(ids) == expected.read(ids)
    proxy.requests.clear()
    assert source.read(ids) == expected.read(ids)
    assert held.read(np.arange(len(held))) == expected.split(0.2, 1)[1].read(np.arange(len(held)))
    assert proxy.requests == []
    job = PackJob(root, "train", str(tmp_path / "pack"), str(tmp_path / "index"), 20_000)
    assert run_pack_job(job, job.prepare()).fingerprint == expected.fingerprint
    with store(port).open_output_stream("bucket/images/train/0/added.jpg") as file:
        file.write(expected.read(np.array([1]))[0])
    assert len(opened(root, tmp_path)) == NUM + 1
    with store(port).open_output_stream("bucket/images/train/0/000.jpg") as file:
        file.write(b"other")
    with pytest.raises(Refused, match=r"train/0/000.jpg was changed, cut off or removed after it was indexed"):
        open_index(root, "train", tmp_path / "index").read(np.arange(3))
    proxy.close()


def test_a_damaged_copy_is_not_believed(packed: str, expected: Source, tmp_path: Path) -> None:
    """As after a loss of power: the sample counts as kept, but its bytes are not there."""
    source = opened(packed, tmp_path, CopyPolicy(str(tmp_path / "copies")))
    source.read(np.arange(NUM))
    for path in (tmp_path / "copies").rglob("0*"):
        if path.is_file():
            path.write_bytes(bytes(path.stat().st_size))
    assert source.read(np.arange(NUM)) == expected.read(np.arange(NUM))


def test_an_order_by_windows_fetches_every_byte_once(packed: str, port: int, expected: Source, tmp_path: Path) -> None:
    """On a disk that holds two windows of one shard, by four threads of two sources: a request a shard and epoch."""
    proxy = FailingProxy(port)
    total = int(expected.table["num_bytes"].to_numpy().sum())
    policy = CopyPolicy(str(tmp_path / "copies"), int(0.7 * total))
    sources = [opened(packed.replace(str(port), str(proxy.port)), tmp_path, policy) for _ in range(2)]
    windows = windows_of(sources[0], 1)
    assert windows.num_shards == 4
    plan = ViewPlan(ViewPolicy(), 3, NUM, windows)
    shown = [in_windows(source, windows) for source in sources]
    shown[0].read(np.arange(0))
    proxy.requests.clear()
    with ThreadPoolExecutor(4) as threads:
        for epoch in range(3):
            for start in range(0, NUM, 8):
                ids = plan.order(epoch, np.arange(start, start + 8))
                parts = list(threads.map(lambda source, part: source.read(part), shown * 2, np.split(ids, 4)))
                assert [content for part in parts for content in part] == expected.read(ids)
    gets = [line for line in proxy.requests if line.startswith("GET")]
    assert 4 < len(gets) <= 3 * 4, "the last shards of an epoch may still be there in the next"
    kept = shown[0]._storage.kept_bytes  # type: ignore[attr-defined]
    assert total // 4 < kept <= int(0.7 * total)
    assert _disk_bytes(tmp_path / "copies") < 0.7 * total + 64 * 1024
    proxy.close()


def test_a_disk_without_room_for_two_windows(packed: str, tmp_path: Path) -> None:
    source = opened(packed, tmp_path, CopyPolicy(str(tmp_path / "copies"), 1000))
    shown = in_windows(source, windows_of(source, 2))
    with pytest.raises(Refused, match=r"data.window_shards: two windows take 0 MiB, but .* raise data.copies_bytes"):
        shown.read(np.arange(3))


PACKING = """
import os, signal, sys
from pipelines.data import packing
from pipelines.data.convert import PackJob, run_pack_job

write, written = packing.write_shard, []

def write_and_die(place, folder, shards, number):
    if len(written) == int(sys.argv[5]):
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(number)
    return write(place, folder, shards, number)

packing.write_shard, packing.MAX_THREADS = write_and_die, 1
job = PackJob(sys.argv[1], "train", sys.argv[2], sys.argv[3], shard_bytes=int(sys.argv[4]))
print(run_pack_job(job, job.prepare()).fingerprint, *written)
"""


@pytest.mark.slow
def test_packing_is_killed_and_goes_on(folder: Path, expected: Source, bucket: str, port: int, tmp_path: Path) -> None:
    """SIGKILL after two shards: no index is there, and the same command again writes the other shards alone."""
    shard_bytes = int(expected.table["num_bytes"].to_numpy().sum()) // 5
    words = [str(folder), uri(bucket, port), str(tmp_path / "index"), str(shard_bytes)]
    killed = subprocess.run([sys.executable, "-c", PACKING, *words, "2"], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-500:]
    there = [info.base_name for info in store(port).get_file_info(fs.FileSelector("bucket/images/train"))]
    assert sorted(there) == [f"shard-0000{n}{kind}.arrow" for n in (0, 1) for kind in ("", ".facts")]
    done = subprocess.run([sys.executable, "-c", PACKING, *words, "99"], check=True, capture_output=True)
    fingerprint, *written = done.stdout.decode().split()
    assert fingerprint == expected.fingerprint
    assert [int(number) for number in written] == list(range(2, 2 + len(written)))
    assert len(written) >= 3
