"""What a cache holds is the teacher's own: its rows come out the same again, and its head answers the same."""

import json
from pathlib import Path

import pytest
import torch

from cluster.cache.job import build
from cluster.cache.verify import verify
from cluster.teachers.stored import head_facts, head_of
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from kdcore.reused import ReusedHead, TeacherHead
from pipelines.cache.building import Building
from pipelines.cache.manifest import load_manifest
from pipelines.cache.store import map_shard, write_shard
from tests.cluster.cache.cached import CPU, KD, METHODS, change_weights


@pytest.mark.parametrize("model", ["cifar_resnet8", "vit_tiny_patch16_224", "convnext_atto"])
def test_a_head_survives_being_stored(model):
    """Of a convolutional network, of one with tokens, and of one with a norm before the classifier."""
    torch.manual_seed(0)
    args = {"img_size": 32} if model.startswith("vit") else {}
    network = build_model(ModelConfig(model=model, args=args), ("a", "b", "c")).eval()
    head = TeacherHead.of(network, (32, 32))
    facts, tensors = head_facts(head)
    tensors |= {"classifier.weight": head.classifier.weight, "classifier.bias": head.classifier.bias}
    again = head_of(json.loads(json.dumps(facts)), tensors)
    assert (again.layout, again.pool, again.signed) == (head.layout, head.pool, head.signed)
    features = network.forward_features(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(ReusedHead(again)(features), network.forward_head(features))


def test_verify_recomputes_rows(recipes, teacher):
    """All agree; a row that was written wrongly, with its checksums in order, is found."""
    config = recipes(cache__features="int8", method=METHODS["feature_only"]["method"] + KD[1:])
    build(config)
    found = {(one.part, one.column): (one.rows, one.wrong) for one in verify(config, 1000, CPU)}
    assert found == {
        ("train", "features.layer2"): (96, 0),
        ("train", "logits"): (96, 0),
        ("val", "logits"): (15, 0),
    }
    write_wrongly(Path(config.cache.dir))
    assert [one.wrong for one in verify(config, 1000, CPU)] == [1, 0, 0]
    change_weights(teacher)
    with pytest.raises(Refused, match=r"teacher.weights"):
        verify(config, 4, CPU)


def test_verify_reads_every_byte(recipes):
    """Also of shards of which no row is recomputed."""
    config = recipes(method=KD)
    build(config)
    shard = next(Path(config.cache.dir).rglob("view-00001/*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(Refused, match=r"view-00001/.*checksum differs"):
        verify(config, 0, CPU)


def write_wrongly(directory: Path) -> None:
    """One logit of one row of the second shard, with all checksums in order."""
    building = Building(directory, load_manifest(directory).plan)
    unit = building.plan.units()[1]
    fields = {name: spec for c in building.plan.parts[unit.part].columns for name, spec in c.fields().items()}
    mapped = map_shard(directory, building.shards[unit], fields)
    rows = {name: values.copy() for name, values in mapped.items()}
    rows["logits"][3, 0] += 0.5
    building.shards[unit] = write_shard(directory, unit, rows, building.key)
    building.finish()
