"""Fingerprints are of what things look like: pinned for good, and untouched by a new field that is not used."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
from pydantic import BaseModel, create_model

from pipelines.cache.columns import PlainColumn
from pipelines.cache.manifest import Manifest, Part, Plan
from pipelines.cache.store import Shard
from pipelines.data.source import Source
from pipelines.data.source_table import fingerprint
from pipelines.identity import identity_of
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy
from pipelines.views.sampling import ClassSampling
from pipelines.views.windows import Windows

STRONG = ViewPolicy(
    size=(224, 192),
    interpolation="bicubic",
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    erase_probability=0.25,
    erase_fill="noise",
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
)
# (policy, seed, the fingerprint that it had before fields could be added)
PINNED = {
    "plain": (ViewPolicy(), 0, "c2c7e965d06d45c3142412ab7813f61ca2620499770f8746ab4256a21b79475c"),
    "cifar": (
        ViewPolicy(size=32, crop="padded"),
        1,
        "f291e9eafa9c7746a6104bb778a11e7fcb635ec1bd19524402845c6795533f6e",
    ),
    "evaluation": (
        ViewPolicy.evaluation(224, 0.95, "bicubic"),
        2,
        "aee3f55d816345a349975fd55f88f94629f7559e201a839dd6d6033e16a48856",
    ),
    "strong": (STRONG, 3, "1e7c8a546835c333a271478153aa3a9cac98f4e19c9e2ced9c21a652340adf89"),
    "some views": (
        ViewPolicy(scale=(0.2, 1.0), flip_probability=0.0, mixup_alpha=0.2, mix_probability=0.5, num_views=50),
        4,
        "38d4e2a2e71d0578826ac1679525262423fe8471feee32452bc77daf63b9384c",
    ),
}
PLAN = Plan(
    identity={"teacher": {"model": "x"}, "mean": [0.5, 0.25]},
    parts={
        "train": Part(num_rows=10, num_views=2, columns=(PlainColumn(name="logits", shape=(5,), coding="float16"),))
    },
    rows_per_shard=4,
    batch_size=2,
)
PLAN_KEY = "a031f753cd439e97f7484defe6f4d8bcc6242c66878b1ffaf71a3c31fab33932"


@pytest.mark.parametrize("name", PINNED)
def test_fingerprints_of_views_are_pinned(name):
    policy, seed, fingerprint = PINNED[name]
    assert ViewPlan(policy, seed, 100).fingerprint == fingerprint


@pytest.mark.parametrize("name", PINNED)
def test_an_idle_field_changes_no_fingerprint(name):
    """A field that the policy gets later, and that is off, leaves caches and unfinished runs as they are."""
    policy, seed, fingerprint = PINNED[name]
    later = create_model("Later", __base__=ViewPolicy, rand_augment=(int, 0), ops=(tuple[str, ...], ()))
    given = policy.model_dump(exclude_unset=True)
    assert ViewPlan(later(**given), seed, 100).fingerprint == fingerprint
    assert ViewPlan(later(**given, rand_augment=9), seed, 100).fingerprint != fingerprint
    assert later(**given, rand_augment=9).appearance()["rand_augment"] == 9


def test_a_caches_key_and_digest_are_pinned():
    shard = Shard(part="train", view=0, start=0, stop=4, num_bytes=9, sha256="s")
    manifest = Manifest(plan=PLAN, constants="c", error={"1.0": 0.5}, shards=(shard,))
    assert PLAN.key("abc") == PLAN_KEY
    assert manifest._own_digest() == "e1a1279d757cf578c9da7bafa659200066472efee5425b795ad0f32824a1bfe8"


def test_an_idle_field_changes_no_caches_key():
    later = create_model("Later", __base__=Plan, crew=(str, ""))
    assert later(**PLAN.model_dump()).key("abc") == PLAN_KEY
    assert later(**PLAN.model_dump(), crew="b").key("abc") != PLAN_KEY


def test_without_first_fields_everything_counts():
    class Plain(BaseModel):
        a: int
        b: int = 3

    class Later(Plain):
        FIRST_FIELDS: ClassVar[frozenset[str]] = frozenset()

    assert identity_of({"x": (Plain(a=1),)}) == {"x": [{"a": 1, "b": 3}]}
    assert identity_of(Later(a=1)) == {"a": 1}


def images(labels: list[int]) -> pa.Table:
    """The table of as many images, each with numbers of its own."""
    ids = np.arange(len(labels), dtype=np.int32)
    paths = pa.array([f"train/x/{i}.png" for i in ids], pa.large_string())
    numbers = {"height": ids + 30, "width": ids + 40, "num_bytes": ids + 500, "crc32": ids + 6000}
    return pa.table({"path": paths, "label": pa.array(labels, pa.int32()), **numbers})


def test_the_fingerprint_of_images_is_pinned_and_covers_labels_and_class_names():
    """With equal paths and pixels, another label or another name of a class is another data set."""
    pinned = "1d48b3382444f0bce74ee9c9840e3f8fe3c4f05f41a517d56711acbd89d5727b"
    assert fingerprint(("cat", "dog"), images([0, 1, 1])) == pinned
    assert fingerprint(("cat", "dog"), images([0, 1, 0])) != pinned
    assert fingerprint(("cat", "cow"), images([0, 1, 1])) != pinned


def test_held_out_images_are_pinned():
    """Other ones would leak images that an unfinished run was trained on into those that it is chosen by."""
    rest, held = Source("nowhere", ("cat", "dog"), images([0] * 10 + [1] * 10)).split(0.25, seed=1)
    assert held.heights.tolist() == [30, 36, 40, 45]
    assert sorted([*rest.heights, *held.heights]) == list(range(30, 50))


def test_digests_of_orders_are_pinned():
    windows = Windows(2, np.array([3, 1, 0, 2, 4]), np.array([0, 2, 5]))
    assert windows.digest == "04371e4b30299b3edcb239316cf344169c3e7fe72e1bc2dd52ae48a6a0cf4ef5"
    sampling = ClassSampling(0.5, np.array([0, 1, 1]))
    assert sampling.digest == "36a115d14f25829eccc3d5736533cafee24050c11a1be628b3d20fa723459b3a"
