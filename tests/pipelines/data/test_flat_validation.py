"""ImageNet's validation images side by side in one folder: where their labels come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from kdcore.errors import Refused
from pipelines.data.source import Source
from tests.pipelines.data.test_kinds import build
from tests.pipelines.pictures import picture


@pytest.fixture
def flat(tmp_path: Path) -> tuple[Path, Source]:
    """ImageNet's validation images side by side, and the same in class folders."""
    root, sorted_root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC", tmp_path / "sorted"
    (root / "val").mkdir(parents=True)
    for number, wnid in enumerate(WNIDS, 1):
        (sorted_root / "val" / wnid).mkdir(parents=True, exist_ok=True)
        for folder in (root / "val", sorted_root / "val" / wnid):
            picture(20, 30, number).save(folder / f"ILSVRC2012_val_{number:08d}.JPEG", format="JPEG")
    return root, build(sorted_root, "val")


WNIDS = ("n03", "n01", "n02", "n01")


def test_flat_validation_images_with_kaggles_labels(flat: tuple[Path, Source], tmp_path: Path) -> None:
    root, expected = flat
    lines = [f"ILSVRC2012_val_{number:08d},{wnid} 1 2 3 4 n09 5 6 7 8" for number, wnid in enumerate(WNIDS, 1)]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
    source = build(root, "val")
    assert (source.fingerprint, source.classes) == (expected.fingerprint, ("n01", "n02", "n03"))
    assert source.read(np.arange(4)) == expected.read(np.arange(4))


def test_flat_validation_images_with_the_devkits_labels(flat: tuple[Path, Source]) -> None:
    root, expected = flat
    devkit = root / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    numbers = {"n01": 2, "n02": 3, "n03": 1}
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{numbers[wnid]}\n" for wnid in WNIDS))
    with pytest.raises(Refused, match=r"as the development kit's meta.mat says; put that file beside it"):
        build(root, "val")
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O")]
    synsets = np.array([(number, wnid) for wnid, number in numbers.items()], dtype=kinds)[:, None]
    savemat(devkit / "meta.mat", {"synsets": synsets})
    assert build(root, "val").fingerprint == expected.fingerprint


def test_flat_validation_images_without_labels(flat: tuple[Path, Source]) -> None:
    root, _ = flat
    with pytest.raises(Refused, match=r"without class folders, and no labels; put LOC_val_solution.csv or"):
        build(root, "val")
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,n01 1 2 3 4")
    with pytest.raises(Refused, match=r"has no label for ILSVRC2012_val_00000002.JPEG"):
        build(root, "val")
