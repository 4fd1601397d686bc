"""A trial step on two random images, before anything costs time: what does not fit is refused by name.

Every network is called in every shape in which the run will call it, and every loss is computed: it must give one value
per image, with a gradient, and a finite one, unless only shapes are tried (on the meta device, which has no values).
Nothing is updated; the running statistics of batch norm change, so a rehearsed distiller must not be trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdcore.batch import Batch, TeacherOutputs
from kdcore.distiller import Distiller
from kdcore.errors import Refused
from kdcore.layout import complaint, evaluating, is_complaint
from kdcore.protocol import check_answers, require_logits
from kdcore.terms import Term, TermInputs
from kdcore.terms.foreign import complaints_of


def rehearse(
    distiller: Distiller,
    image_size: tuple[int, int],
    batch_size: int,
    mixes: bool,
    targets: Callable[[int], TeacherOutputs | None] | None = None,
    teacher_size: tuple[int, int] | None = None,
) -> None:
    """Compute the loss of one random micro-batch of images [H,W] in training mode. Refused where that cannot be done.

    batch_size: of the micro-batches, of which at most two images are used. mixes: whether labels are soft. targets:
    returns stored outputs for a number of samples, if no teacher answers. teacher_size: of the images that an online
    teacher sees, if it differs.
    """
    images = random_images(distiller.student, min(batch_size, 2), image_size)
    num_classes = int(distiller.student.num_classes)  # type: ignore[arg-type]
    labels = torch.arange(len(images)) % num_classes
    if mixes:
        labels = nn.functional.one_hot(labels, num_classes).float()
    ids = torch.arange(len(images))
    batch = Batch(images, labels, ids, torch.zeros_like(ids), epoch=0.0)
    if teacher_size is not None:
        batch = replace(batch, teacher_images=random_images(distiller.student, len(images), teacher_size))
    if targets is not None and (stored := targets(len(images))) is not None:
        batch = batch.with_targets(stored)
    begun: list[str] = []
    hooks = []
    for name, module in distiller.extras.items():
        hooks.append(module.register_forward_pre_hook(_noting(name, begun)))
        hooks.append(module.register_forward_hook(_checking(len(images), begun, distiller.terms[name])))
    distiller.train()
    try:
        distiller(batch)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if begun and isinstance(error, complaints_of(distiller.terms[begun[-1]])):
            raise distiller.refusal(begun[-1], error) from error
        if begun or not is_complaint(error):
            raise
        raise Refused(_not_taken(distiller.student, images, error)) from error
    finally:
        for hook in hooks:
            hook.remove()


def check_network(network: nn.Module, image_size: tuple[int, int]) -> None:
    """Refuse a network that cannot answer images of [H,W] in evaluation, or answers with anything but logits."""
    images = random_images(network, 2, image_size)
    try:
        with torch.no_grad(), evaluating(network):
            logits = network(images)
    except Exception as error:
        if not is_complaint(error):
            raise
        raise Refused(_not_taken(network, images, error)) from error
    require_logits(network, logits, in_training=False)
    check_answers(network, images, logits)


def random_images(network: nn.Module, number: int, image_size: tuple[int, int]) -> Tensor:
    """Return the same random images every time, on the network's device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, 3, *image_size, generator=generator).to(next(network.parameters()))


def _noting(name: str, begun: list[str]) -> Callable[[nn.Module, tuple[TermInputs]], tuple[TermInputs]]:
    def note(module: nn.Module, inputs: tuple[TermInputs]) -> tuple[TermInputs]:
        begun.append(name)
        logits = inputs[0].student_logits
        return (replace(inputs[0], student_logits=logits.view_as(logits)),)  # told apart from a tap that gives the same

    return note


def _checking(number: int, begun: list[str], term: Term) -> Callable[[nn.Module, Any, object], None]:
    """Return a hook that refuses a term's output for `number` images unless it is one finite value per image.

    The value must have a gradient if anything that the term may read of the student has one, and none at logits that
    the term does not declare. begun: the terms that are being computed; one that passes is removed.
    """

    def check(module: nn.Module, inputs: tuple[TermInputs], value: object) -> None:
        if not isinstance(value, Tensor):
            raise Refused(f"it gives a {type(value).__name__}; return a tensor of one value an image [{number}]")
        if value.shape != (number,):
            raise Refused(f"it gives a tensor {list(value.shape)}, not one value an image [{number}]; {_mend(value)}")
        if not value.is_floating_point() or (_have_gradients(inputs[0]) and not value.requires_grad):
            raise Refused(
                f"its loss ({str(value.dtype).removeprefix('torch.')}) has no gradient, so the student would learn "
                "nothing from it; compute it from what it reads of the student, without detach, argmax and comparisons"
            )
        if not term.teaches_classifier and _depends_on(value, inputs[0].student_logits):
            raise Refused(
                "it reads student_logits and taps, which decides whether the student's accuracy is measured; say so "
                "in its class: reads_logits: ClassVar[bool] = True"
            )
        if not value.is_meta and not value.isfinite().all():  # the meta device has no values to look at
            raise Refused(
                f"its loss of random images is {value[~value.isfinite()][0].item()}; correct its fields, or the "
                "weights of the networks"
            )
        begun.pop()

    return check


def _mend(value: Tensor) -> str:
    """Return the remedy that turns a loss of another shape into one value per image."""
    if value.ndim == 0:
        return "do not reduce the loss over the batch"
    return "reduce it over every dimension but the first" if value.ndim > 1 else "keep every image of the batch"


def _have_gradients(inputs: TermInputs) -> bool:
    """Whether something that a term may read of the student has a gradient."""
    read = [inputs.student_logits, *inputs.student_features.values(), inputs.student_input_gradient]
    return any(tensor.requires_grad for tensor in read if tensor is not None)


def _depends_on(value: Tensor, read: Tensor) -> bool:
    """Whether a value has a gradient at a tensor."""
    if not (value.requires_grad and read.requires_grad):
        return False
    return torch.autograd.grad(value.sum(), read, retain_graph=True, allow_unused=True)[0] is not None


def _not_taken(network: nn.Module, images: Tensor, error: Exception) -> str:
    number, _, height, width = images.shape
    of_size = (
        "change views.size (and data.evaluation_size), the micro-batch, or the args of the model, such as img_size"
    )
    name = type(network).__name__
    return f"{name} cannot take {number} images of {height}x{width} at a time {complaint(error, of_size)}"
