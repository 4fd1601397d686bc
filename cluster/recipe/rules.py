"""What must hold between the sections of a recipe; each rule refuses what does not fit, with what to write instead.

Not here: what a section says by itself (`cluster.recipe.sections`, `cluster.recipe.run_sections`), and the rules of
teachers (`cluster.recipe.teacher_sections`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cluster.recipe import teacher_sections
from cluster.recipe.run_sections import ScalingConfig
from cluster.recipe.sections import CacheConfig, DataConfig, TeacherConfig
from cluster.recipe.teacher_sections import EnsembleConfig, check_a_teacher_is_there, check_heads, check_teachers
from kdcore.configs import CYCLED_MOMENTUM, OptimizerConfig, ScheduleConfig
from kdcore.errors import Refused
from pipelines.views.policy import ViewPolicy


class Recipe(teacher_sections.Recipe, Protocol):
    """The parts of a `RunConfig` that the rules look at."""

    @property
    def data(self) -> DataConfig: ...
    @property
    def views(self) -> ViewPolicy: ...
    @property
    def scaling(self) -> ScalingConfig: ...
    @property
    def cache(self) -> CacheConfig | None: ...
    @property
    def ensemble(self) -> EnsembleConfig: ...
    @property
    def all_teachers(self) -> Sequence[TeacherConfig]: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def schedule(self) -> ScheduleConfig: ...


def check_something_is_learnt(config: Recipe) -> None:
    if all(term.weight == 0 for term in config.method):
        raise Refused("method: every term has weight 0, so nothing would be learnt; give one a positive weight")


def check_weights_decay_within_the_run(config: Recipe) -> None:
    for term in config.method:
        term.check_epochs(config.train.epochs)


def check_a_cache_is_there(config: Recipe) -> None:
    if any(teacher.cached for teacher in config.all_teachers):
        require_cache(config.cache, config.views)


def check_teacher_sees_the_students_views(config: Recipe) -> None:
    sides = next((sides for sides in config.views.all_sizes if sides[0] != sides[1]), None)
    for teacher in config.all_teachers:
        if teacher.image_size is not None and (fixed := config.views.in_pixels):
            raise Refused(
                f"teacher.image_size={teacher.image_size}, but {fixed} counts pixels of views.size, so that the "
                f"teacher would see another view than the student; turn {fixed} off, or leave teacher.image_size out"
            )
        if teacher.image_size is not None and sides is not None:
            raise Refused(
                f"teacher.image_size={teacher.image_size} is a square, but views of {sides[0]} x {sides[1]} pixels "
                "(views.size, views.sizes) are not, so that the teacher would see another part of the image than the "
                "student; give one number for each size, or leave teacher.image_size out"
            )


def check_micro_batches_fill_the_batch(config: Recipe) -> None:
    train = config.train
    if train.micro_batch and train.batch_size % train.micro_batch:
        number = max(train.batch_size // train.micro_batch, config.scaling.num_workers, 1)
        raise Refused(
            f"train.batch_size {train.batch_size} is not a multiple of train.micro_batch {train.micro_batch}; "
            f"take {number * train.micro_batch}"
        )


def check_workers_share_the_batch(config: Recipe) -> None:
    if config.scaling.min_workers and not config.train.micro_batch:
        raise Refused(
            "scaling.min_workers lets the number of workers change, and with it what one forward pass holds; set "
            "train.micro_batch"
        )
    micro_batch_size(config, config.scaling.num_ranks)


def check_a_step_can_be_one_graph(config: Recipe) -> None:
    train, workers = config.train, config.scaling.num_workers
    if not train.cuda_graph:
        return
    drawing = [term.term for term in config.method if term.weight > 0 and term.needs().sample_ids]
    by_epoch = [term.term for term in config.method if term.weight > 0 and term.computes_by_epoch]
    if workers > 1:
        reason = f"scaling.num_workers={workers} average their gradients outside of it"
    elif micro_batch_size(config, 1) < train.batch_size:
        reason = f"train.micro_batch={train.micro_batch} makes several passes a step"
    elif config.teachers:
        reason = "several teachers' answers are averaged by weights that may change"
    elif drawing:
        reason = f"the term {drawing[0]} reads the numbers of the samples"
    elif by_epoch:
        reason = f"the term {by_epoch[0]} computes something else in every epoch"
    else:
        return
    raise Refused(
        f"train.cuda_graph: a graph is the one forward and backward pass of a step, but {reason}; leave it out"
    )


def check_a_step_can_be_compiled(config: Recipe) -> None:
    term = next((t.term for t in config.method if t.weight > 0 and t.needs().student_input_gradient), None)
    if config.train.compile and term:
        raise Refused(
            f"train.compile: the term {term} takes a gradient of a gradient, which is not compiled; leave it out"
        )


def check_labels_are_what_the_method_reads(config: Recipe) -> None:
    if (config.needs.hard_labels or config.needs.unmixed) and config.views.mixes:
        needs = {term.term: term.needs() for term in config.method if term.weight > 0}
        coupled = [name for name, one in needs.items() if one.hard_labels or one.unmixed]
        raise Refused(
            f"{', '.join(coupled)} does not work with mixed images; set views.mixup_alpha and views.cutmix_alpha to 0"
        )


def check_images_to_choose_by_are_held_out(config: Recipe) -> None:
    if config.train.select == "held_out" and config.data.held_out == 0:
        raise Refused(
            "train.select is held_out, but data.held_out is 0; keep back a fraction such as 0.02, or set "
            "train.select=last"
        )


def check_momentum_is_one_cycles(config: Recipe) -> None:
    optimizer = config.optimizer
    if config.schedule.sched != "onecycle":
        return
    betas, start = optimizer.args.get("betas"), CYCLED_MOMENTUM[0]
    if isinstance(betas, Sequence) and betas and betas[0] != start:
        given, remedy = f"args.betas={list(betas)}", f"give betas=[{start}, ...], which only keeps the others"
    elif optimizer.momentum != type(optimizer).model_fields["momentum"].default:
        given, remedy = f"momentum={optimizer.momentum:g}", "leave it out"
    else:
        return
    raise Refused(
        f"optimizer.{given}, but schedule.sched=onecycle sets the momentum of every step, from {start} to "
        f"{CYCLED_MOMENTUM[1]} and back; {remedy}, or take another schedule"
    )


def check_sampling_is_of_a_full_shuffle(config: Recipe) -> None:
    if config.data.sampling == "images":
        return
    others = {
        "data.window_shards": config.data.window_shards is not None,
        "views.repeats": config.views.repeats > 1,
        "views.sizes": bool(config.views.sizes),
    }
    if (other := next((name for name, is_on in others.items() if is_on), None)) is not None:
        raise Refused(
            f"data.sampling={config.data.sampling} shows an image again within an epoch, each time in its next view, "
            f"which {other} has another rule for; leave one of the two out"
        )


def check_patience_has_a_score(config: Recipe) -> None:
    if config.train.patience_epochs is not None and config.train.select == "last":
        raise Refused(
            "train.patience_epochs waits for a better score, but train.select is last, which keeps none; take held_out "
            "with data.held_out=0.1 (training images kept back), or val, whose accuracy is then optimistic"
        )


def check_several_labels_are_read_class_by_class(config: Recipe) -> None:
    if not config.data.multi_label:
        return
    if (term := next((t for t in config.method if t.weight > 0 and not t.fits_multi_label), None)) is not None:
        raise Refused(
            f"data.multi_label: images have several labels, and the term {term.term} takes one class of each for the "
            "right one; take bce for the labels and binary_kd for the teacher's logits (terms on features only fit)"
        )
    headless = any(teacher.head == "none" for teacher in config.all_teachers)
    unfit = {
        f"data.sampling={config.data.sampling} draws images by their one class": config.data.sampling != "images",
        "data.images_per_class counts images by their one class": config.data.images_per_class is not None,
        "teacher.head=none is judged by neighbours of one class": headless,
        "cache.logits=sparse keeps what a softmax needs; take dense": bool(
            config.cache and config.cache.logits == "sparse"
        ),
        "ensemble.average=probabilities takes a softmax; take logits": config.ensemble.average == "probabilities",
        "ensemble.weighting=confidence takes a softmax; take fixed": config.ensemble.weighting == "confidence",
    }
    if (reason := next((reason for reason, is_so in unfit.items() if is_so), None)) is not None:
        raise Refused(f"data.multi_label: images have several labels, but {reason}, or leave it out")


def check_statistics_are_whole(config: Recipe) -> None:
    if (config.data.mean is None) != (config.data.std is None):
        raise Refused("data.mean and data.std belong together; give both or neither")


# What every recipe must hold to, also that of a finished run: without these, it cannot be understood.
RULES = (
    check_teachers,
    check_heads,
    check_a_teacher_is_there,
    check_a_cache_is_there,
    check_teacher_sees_the_students_views,
    check_micro_batches_fill_the_batch,
    check_workers_share_the_batch,
    check_several_labels_are_read_class_by_class,
    check_statistics_are_whole,
)

# What must not be trained. A finished run may be older than one of these rules, and is read nonetheless.
TRAINING_RULES = (
    check_something_is_learnt,
    check_weights_decay_within_the_run,
    check_a_step_can_be_one_graph,
    check_a_step_can_be_compiled,
    check_labels_are_what_the_method_reads,
    check_images_to_choose_by_are_held_out,
    check_patience_has_a_score,
    check_momentum_is_one_cycles,
    check_sampling_is_of_a_full_shuffle,
)


def check_may_be_trained(config: Recipe) -> None:
    """Refuse a recipe that can be understood, but would not train as it says."""
    for rule in TRAINING_RULES:
        rule(config)


# What lies in an output folder besides the folders of its runs.
RESERVED_NAMES = ("index", "artifacts", "mlflow.db", "mlruns")


def check_not_reserved(name: str) -> None:
    """Refuse the name of a run or a sweep that would lie where an output folder keeps something else."""
    if name.lower() in RESERVED_NAMES or name.lower().startswith("mlflow.db"):
        raise Refused(f"{name!r} is reserved in the output folder; choose another name")


def require_teacher(config: Recipe) -> TeacherConfig:
    """Return the recipe's one teacher. Refused where there is none."""
    if config.teacher is None:
        raise Refused("the recipe has no teacher; name one, such as teacher.model=resnet50 teacher.checkpoint=FILE")
    return config.teacher


def require_cache(cache: CacheConfig | None, views: ViewPolicy) -> CacheConfig:
    """Return the recipe's cache section. Refused where there is none, or where the number of views is open."""
    if cache is None:
        raise Refused("the recipe has no cache; add a 'cache:' section, such as {dir: outputs/cache}")
    if views.num_views is None:
        raise Refused(
            "a cache holds a fixed number of views, but views.num_views is open; set it, such as views.num_views=50 "
            "(a run then shows view `epoch mod num_views`)"
        )
    return cache


def micro_batch_size(config: Recipe, num_workers: int) -> int:
    """Return the number of images of one forward pass; Refused where the workers cannot share the batch.

    num_workers: those that train now, which may be fewer than the recipe's.
    """
    train = config.train
    micro_batch = train.micro_batch
    if micro_batch is None:
        if train.batch_size % num_workers:
            raise Refused(
                f"train.batch_size {train.batch_size} cannot be shared by {num_workers} workers; take a multiple, "
                "or set train.micro_batch"
            )
        micro_batch = train.batch_size // num_workers
    if (number := train.batch_size // micro_batch) < num_workers:
        raise Refused(
            f"train.batch_size={train.batch_size} is {number} micro-batch{'es' * (number > 1)} of {micro_batch}, "
            f"fewer than scaling.num_workers {num_workers}; take a smaller train.micro_batch or fewer workers"
        )
    if config.views.mixes and micro_batch % 2:
        raise Refused(
            f"mixed images come in pairs, so the micro-batch must be even, not {micro_batch}; change train.micro_batch "
            "or train.batch_size"
        )
    return micro_batch
