"""Between a run and a teacher cache: what the cache must belong to and hold, and the teacher that it stands for.

Not here: how a cache is filled (`cluster.cache.job`) and read (`pipelines.cache`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cluster.images import image_size
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.recipe.plugins import fingerprint_of_module
from cluster.recipe.sections import TeacherConfig
from cluster.scores import counts_for, over_ranks
from cluster.weights import weights_fingerprint
from kdcore.batch import ClassStatistics, Needs, Statistics, TeacherOutputs
from kdcore.errors import Refused
from kdcore.layout import Layout, in_proportion
from kdcore.models import build_backbone, build_model, input_statistics
from kdcore.named_models import module_of
from kdcore.reused import TeacherHead
from kdcore.taps import gives_channels_last
from pipelines.cache.columns import FEATURES, INPUT_GRADIENT
from pipelines.cache.local import local_folder
from pipelines.cache.manifest import Manifest, load_manifest, pixel_versions, refuse_other_identity
from pipelines.cache.reader import (
    CLASS_MEANS,
    CLASS_SIMILARITY,
    CacheReader,
    classifier_of,
    load_constants,
    tensors_under,
)
from pipelines.data.source import Source
from pipelines.loaders.base import Request
from pipelines.loaders.choose import decodes_on_gpu
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy

TRAIN = "train"
CHANNELS_FIRST = "channels_first"  # in a teacher's identity: the taps whose channels it has last, and a cache first
NORM = "norm."


@dataclass(frozen=True)
class StoredTeacher:
    """A teacher as a cache holds it: what `OnlineTeacher` answers, without the teacher."""

    manifest: Manifest
    train: CacheReader
    evaluations: dict[str, CacheReader]
    constants: dict[str, Tensor]

    def outputs(self, request: Request) -> TeacherOutputs:
        """Return the answers for a request of training views."""
        return self.train.outputs(request.views, request.sample_ids)

    @property
    def has_head(self) -> bool:
        """Whether it has answered with logits; a teacher without a head is stored only by its features."""
        return bool(self.evaluations)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """{tap: shape of its features without the batch}."""
        columns = [column for column in self.train.columns if column.name.startswith(FEATURES)]
        return {column.name.removeprefix(FEATURES): torch.Size(column.shape) for column in columns}

    @property
    def class_statistics(self) -> ClassStatistics:
        similarity = self.constants.get(CLASS_SIMILARITY)
        return ClassStatistics(
            tensors_under(self.constants, CLASS_MEANS, self.train.device),
            None if similarity is None else similarity.to(self.train.device),
        )

    @property
    def head(self) -> TeacherHead:
        """The head that SimKD reuses. Refused where the cache was built without it."""
        if self.manifest.plan.head is None:
            raise Refused(
                f"the cache {self.train.directory} does not hold the teacher's head, which student.classifier: reused "
                "reads; build it in another folder with this recipe, or with cache.head=true"
            )
        return head_of(self.manifest.plan.head, self.constants)

    def evaluation(self, split: str, source: Source, rank: Rank) -> tuple[dict[str, float], Tensor]:
        """Return the teacher's metrics on a split and its logits on this rank's share [n,K], as `teacher_pass`."""
        share = rank.slice_of(len(source))
        counts, ids = counts_for(source, rank.device), np.arange(share.start, share.stop)
        logits = torch.empty(0)
        if len(ids):
            answer = self.evaluations[split].outputs(0, ids).logits
            assert answer is not None, "evaluation parts hold logits"
            counts.add(answer, torch.from_numpy(source.targets(ids)).to(rank.device))
            logits = answer.cpu()
        return over_ranks(counts, len(source), rank), logits


def open_stored_teacher(
    config: RunConfig, expected: dict[str, Any], classes: tuple[str, ...], rank: Rank
) -> StoredTeacher:
    """Open the recipe's cache. Refused for one that belongs to something else, is damaged, or lacks a column.

    expected: the run's `identity`; where the teacher's weights lie on this machine, rank 0 adds them to it.
    """
    assert config.cache is not None, "checked by RunConfig"
    assert config.teacher is not None, "checked by RunConfig"
    directory = local_folder(config.cache.dir, config.cache.copies_dir)
    manifest = load_manifest(directory)
    teacher = declared(config.teacher)
    if rank.first and config.teacher.has_weights:
        built = build_model(config.teacher, classes) if config.teacher.head == "own" else build_backbone(config.teacher)
        teacher["weights"] = weights_fingerprint(built)
        teacher |= own_statistics(config.teacher, built, stated="mean" in manifest.plan.identity["teacher"])
    refuse_other_identity(manifest, {"teacher": teacher, **expected}, str(directory), config.cache.trust)
    refuse_channels_last(manifest, config, str(directory))
    stored_views = manifest.plan.parts[TRAIN].num_views
    if config.views.num_views is None or config.views.num_views > stored_views:
        raise Refused(
            f"the recipe shows {config.views.num_views} views, the cache {directory} holds {stored_views}; set "
            f"views.num_views={stored_views}, or `python -m ops cache build` with more, which adds to it"
        )
    train = CacheReader(directory, manifest, TRAIN, config.needs, rank.device)
    logits = Needs(teacher_logits=True)
    splits = [name for name in manifest.plan.parts if name != TRAIN]
    evaluations = {split: CacheReader(directory, manifest, split, logits, rank.device) for split in splits}
    stored = StoredTeacher(manifest, train, evaluations, load_constants(directory, manifest))
    require_class_statistics(stored, config.needs)
    return stored


def refuse_channels_last(manifest: Manifest, config: RunConfig, where: str) -> None:
    """Refuse maps stored [H,W,C], as the teacher has them: as taps gave them before they moved channels."""
    assert config.teacher is not None, "checked by RunConfig"
    seen = image_size(config.for_teacher)
    moved = manifest.plan.identity["teacher"].get(CHANNELS_FIRST, ())
    maps = {column.name.removeprefix(FEATURES): column.shape for column in manifest.plan.parts[TRAIN].columns}
    suspects = {
        tap: shape
        for tap, shape in maps.items()
        if len(shape) == 3 and tap not in moved and tap != INPUT_GRADIENT and in_proportion(shape[0], shape[1], seen)
    }
    if not suspects:
        return  # as for nearly every cache: the teacher's network is not built then
    with torch.device("meta"):
        network = build_backbone(config.teacher.resolved().without_files())
    for tap, shape in suspects.items():
        if gives_channels_last(network, tap, (1, *shape), seen):
            raise Refused(
                f"the cache {where} holds tap {tap!r} as {config.teacher.model} lays it out, with its channels last "
                f"{list(shape)}, and maps are read with their channels first; build the cache again in another folder "
                "(cache.dir=...)"
            )


def require_class_statistics(stored: StoredTeacher, needs: Needs) -> None:
    """Refuse a cache that lacks class means, or the similarity of classes, that are read."""
    there = stored.class_statistics
    missing = [f"the class means of tap {tap!r}" for tap in sorted(needs.class_means - there.means.keys())]
    if needs.class_similarity and there.similarity is None:
        missing.append("the similarity of classes")
    if missing:
        raise Refused(
            f"the cache {stored.train.directory} does not hold {missing[0]}; build it with this recipe in another "
            "folder"
        )


def cache_needs(config: RunConfig) -> Needs:
    """Return the needs that a cache built for this recipe meets."""
    assert config.cache is not None, "checked by the caller"
    return config.needs | Needs(
        teacher_taps=frozenset(config.cache.taps), teacher_classifier=config.cache.head or reuses_head(config)
    )


def reuses_head(config: RunConfig) -> bool:
    """Return whether the student is SimKD's, with the teacher's head."""
    return config.student.classifier == "reused"


def identity(
    config: RunConfig,
    indexes: Mapping[str, Source],
    plan: ViewPlan,
    evaluation: ViewPolicy,
    statistics: Statistics,
) -> dict[str, Any]:
    """Return what stored outputs are a function of, except the teacher, as nested plain values.

    Nested, so that a difference has a name.

    evaluation: how validation images are cut; statistics: (mean, std) by which images are normalised.
    """
    mean, std = statistics
    on_gpu = decodes_on_gpu(config.data.decode)
    decoder = f"dali on {'gpu' if on_gpu else 'cpu'}" if config.data.loader == "dali" else "pillow"
    return {
        "data": {split: index.fingerprint for split, index in indexes.items()},
        "views": {**plan.policy.appearance(), "seed": plan.seed, "fingerprint": plan.appearance},
        "evaluation": evaluation.appearance(),
        "preprocessing": {"mean": list(mean), "std": list(std), "decoder": decoder},
        "versions": pixel_versions(),
    }


def declared(teacher: TeacherConfig) -> dict[str, Any]:
    """Return what is known of a teacher without its weights; of a folder that is not here, only its head."""
    head = {} if teacher.head == "own" else {"head": teacher.head}
    if teacher.is_folder and not (teacher.weights_file and teacher.weights_file.is_file()):
        return head
    built = teacher.resolved()
    module = module_of(built.model)
    code = {} if module is None else {"code": fingerprint_of_module(module)}
    return {"model": built.model, "args": json.dumps(built.args, sort_keys=True), **code, **head}


def own_statistics(teacher: TeacherConfig, network: nn.Module, stated: bool = False) -> dict[str, list[float]]:
    """Return the mean and std of a folder's network without a head, where they are not its architecture's; else {}.

    Caches of such networks that state none were built with the architecture's. stated: whether the cache states them.
    """
    if teacher.head == "own" or not teacher.is_folder:
        return {}
    with torch.device("meta"):
        of_architecture = input_statistics(build_backbone(teacher.resolved().without_files()))
    mean, std = input_statistics(network)
    return {"mean": list(mean), "std": list(std)} if stated or (mean, std) != of_architecture else {}


def head_facts(head: TeacherHead) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a head as (plain values, tensors), without its classifier."""
    facts: dict[str, Any] = {"layout": asdict(head.layout), "pool": head.pool, "signed": head.signed, "eps": None}
    if head.norm is None:
        return facts, {}
    facts |= {"eps": head.norm.eps}
    return facts, {NORM + name: tensor for name, tensor in head.norm.state_dict().items()}


def head_of(facts: dict[str, Any], constants: dict[str, Tensor]) -> TeacherHead:
    """Build the head that `head_facts` describes."""
    layout = Layout(**{**facts["layout"], "grid": tuple(facts["layout"]["grid"])})
    cpu = torch.device("cpu")
    norm, tensors = None, tensors_under(constants, NORM, cpu)
    if facts["eps"] is not None:
        affine = "weight" in tensors
        norm = nn.LayerNorm(layout.channels, facts["eps"], affine, "bias" in tensors)
        norm.load_state_dict(tensors)
    return TeacherHead(classifier_of(constants, cpu), layout, facts["pool"], norm, facts["signed"])
