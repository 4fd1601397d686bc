"""Layer quality of a trained teacher on real images; skipped where the optional data are absent."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from kdcore.configs import ModelConfig
from kdcore.models import build_model, input_statistics
from kdcore.quality.collect import LayerQuality, class_balanced_sample
from kdcore.quality.score import Quality
from kdcore.taps import FeatureTaps

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
IMAGES = DATA / "cifar100" / "test-00000-of-00001.parquet"
TEACHER = DATA / "teachers" / "cifar100_resnet56.safetensors"
TAPS = ("layer1.0", "layer2.0", "layer3.8", "classifier_input")

pytestmark = pytest.mark.skipif(
    not (IMAGES.exists() and TEACHER.exists()), reason="no ../shared/data/{cifar100,teachers} beside the repository"
)


def sampled_images(mean, std, per_class: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(images normalised, labels, sample ids) of a class-balanced sample."""
    table = parquet.read_table(IMAGES)
    labels = np.array(table["fine_label"])
    ids = class_balanced_sample(labels, per_class, seed=0)
    pixels = [np.array(Image.open(io.BytesIO(row["bytes"]))) for row in table["img"].take(ids).to_pylist()]
    images = (np.stack(pixels) / 255 - mean) / std
    return torch.from_numpy(images).permute(0, 3, 1, 2).float(), torch.from_numpy(labels[ids]), torch.from_numpy(ids)


def measure(taps: FeatureTaps, sample, batch_size: int, num_workers: int) -> dict[str, Quality]:
    workers = [LayerQuality(num_classes=100) for _ in range(num_workers)]
    for number, worker in enumerate(workers):
        for part in torch.arange(number, len(sample[0]), num_workers).split(batch_size):
            images, labels, ids = (tensor[part] for tensor in sample)
            worker.add(taps(images)[1], labels, ids)
    for other in workers[1:]:
        workers[0].merge(other)
    return workers[0].result(num_train=50_000)


@torch.no_grad()
def test_quality_does_not_depend_on_batches_or_workers():
    config = ModelConfig(model="cifar_resnet56", checkpoint=str(TEACHER))
    model = build_model(config, [str(number) for number in range(100)]).eval()
    sample = sampled_images(*input_statistics(model), per_class=3)
    taps = FeatureTaps(model, TAPS)
    whole = measure(taps, sample, batch_size=100, num_workers=1)
    assert measure(taps, sample, batch_size=100, num_workers=1) == whole
    shared = measure(taps, sample, batch_size=33, num_workers=2)
    for tap in TAPS:  # the network itself rounds differently in another batch
        assert shared[tap].q == pytest.approx(whole[tap].q, rel=1e-5)
    assert whole["layer3.8"].separation > 10 * whole["layer1.0"].separation  # classes part where the teacher knows them
    assert whole["layer3.8"].q > whole["layer2.0"].q > whole["layer1.0"].q
