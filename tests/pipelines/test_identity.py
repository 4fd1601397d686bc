"""Fingerprints are of what things look like: pinned for good, and untouched by a new field that is not used."""

from __future__ import annotations

from typing import ClassVar

import pytest
from pydantic import BaseModel, create_model

from pipelines.cache.columns import PlainColumn
from pipelines.cache.manifest import Manifest, Part, Plan
from pipelines.cache.store import Shard
from pipelines.identity import identity_of
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy

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
