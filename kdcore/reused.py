"""SimKD's student: a backbone and a small projector in front of the teacher's own, frozen classifier.

    images -> student's last map -> (pooled to the teacher's size, if larger) -> projector -> pooling -> teacher's head

Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, arXiv 2203.14001. The
teacher's head is part of the model, its export and `deployed_parameters`; the loss is in `kdcore.terms.features`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcore.batch import Classifier
from kdcore.errors import Refused
from kdcore.layout import Layout, evaluating, last_features, layout_of


@dataclass(frozen=True)
class TeacherHead:
    """The part of a teacher that SimKD reuses: logits = classifier(norm(pool(features))).

    layout: of the teacher's last features, at the image size of training; pool: the mean over the grid, or the class
    token; norm: the layer norm between pooling and classifier, where there is one; signed: whether the features can be
    negative. For a convolutional teacher known only by its classifier [K,C] and its map [C,H,W], such as a cached one:
    `TeacherHead(classifier, Layout(C, (H, W)))`.
    """

    classifier: Classifier
    layout: Layout
    pool: Literal["avg", "token"] = "avg"
    norm: nn.LayerNorm | None = None
    signed: bool = False

    @staticmethod
    def of(teacher: nn.Module, image_size: tuple[int, int]) -> TeacherHead:
        """Read the head off a timm network, and check it: on random images of [H,W] it must give the teacher's logits.

        Refused, with the reason, for a head of another form (a hidden layer, attention pooling, ...).
        """
        name = type(teacher).__name__
        get_classifier: Any = getattr(teacher, "get_classifier", lambda: None)
        linear = get_classifier()
        if not isinstance(linear, nn.Linear):
            raise Refused(f"{name}'s classifier is a {type(linear).__name__}: {_REMEDY}")
        with torch.no_grad(), evaluating(teacher):
            features = last_features(teacher, image_size)
            head = TeacherHead(
                Classifier(linear.weight, linear.bias),
                layout_of(teacher, features, image_size),
                "token" if getattr(teacher, "global_pool", None) == "token" else "avg",
                _norm_before_classifier(teacher),
                signed=bool((features < 0).any()),
            )
            if not _gives_own_logits(head, teacher, features):
                raise Refused(f"{name} computes more than a pooled linear head after its last features: {_REMEDY}")
        return head


_REMEDY = "SimKD reuses heads of pooling, at most a layer norm, and one linear layer; choose a teacher with such a head"


class ReusedHead(nn.Module):
    """A `TeacherHead` as a module: features in the teacher's layout -> logits [B,K].

    It has buffers and no parameters, so that no optimiser, weight decay or `requires_grad_` can reach it.
    """

    def __init__(self, head: TeacherHead) -> None:
        super().__init__()
        self.layout, self.pool = head.layout, head.pool
        self.norm = nn.Identity() if head.norm is None else frozen(head.norm)
        weight, bias = head.classifier.weight, head.classifier.bias
        if weight.shape[1] != head.layout.channels:
            raise Refused(f"a classifier of {list(weight.shape)} cannot read maps of {head.layout.channels} channels")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, weight.device, weight.dtype)
        linear.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
        self.classifier = frozen(linear)

    def forward(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        if self.pool == "token":
            pooled = features[:, 0]
        elif self.layout.kind == "tokens":
            pooled = features[:, self.layout.num_prefix_tokens :].mean(dim=1)
        else:
            pooled = features.mean(dim=(2, 3) if self.layout.kind == "NCHW" else (1, 2))
        pooled = self.norm(pooled)
        return pooled if pre_logits else self.classifier(pooled)


class ReusedClassifierStudent(nn.Module):
    """The network that SimKD trains and deploys, by timm's model contract.

    student: a timm network, which is changed in place: its classifier, and whatever else follows the last features and
    would be unused (a final norm, a hidden layer of the head), are removed. What timm counts as features stays, such as
    the 1x1 `conv_head` of its MobileNetV2. image_size [H,W]: that of training. factor: the projector's hidden width
    is the teacher's channels divided by it (2 in the paper; with wide teachers 4 or 8 keeps more of the compression).

    forward_features: images -> features in the teacher's layout. The larger of the two grids is average-pooled to
    the smaller: the student's here, before the projector; the teacher's by `pool_teacher`. Between a map and tokens,
    patches are places of the map. A teacher's prefix tokens (class, registers) are projected from the student's, as
    many as it has, and from the mean of its grid for the rest.
    """

    def __init__(self, student: nn.Module, head: TeacherHead, image_size: tuple[int, int], factor: int = 2) -> None:
        super().__init__()
        remove_head(student, image_size)
        with torch.no_grad(), evaluating(student):
            features = last_features(student, image_size)
        self.student_layout = layout_of(student, features, image_size)
        self.teacher_layout = head.layout
        self.layout = replace(head.layout, grid=_smaller(self.student_layout.grid, head.layout.grid))
        self.student = student
        self.projector = projector(self.student_layout.channels, self.layout, factor, head.signed)
        self.head = ReusedHead(head)
        self.num_classes = head.classifier.weight.shape[0]
        self.num_features = self.head_hidden_size = self.layout.channels
        self.num_prefix_tokens, self.output_fmt = self.layout.num_prefix_tokens, self.layout.kind
        own = {"num_classes": self.num_classes, "classifier": "head.classifier"}
        self.pretrained_cfg = self.default_cfg = {**getattr(student, "pretrained_cfg", {}), **own}

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B,3,H,W] -> the projected features, in the teacher's layout."""
        grid, prefix = self.student_layout.split(self.student.forward_features(x))  # type: ignore[operator]
        grid = _pool(grid, self.student_layout, self.layout)
        missing = self.layout.num_prefix_tokens - prefix.shape[2]
        if missing > 0:
            prefix = torch.cat([prefix, grid.mean(dim=(2, 3)).unsqueeze(2).expand(-1, -1, missing)], dim=2)
        prefix = prefix[:, :, : self.layout.num_prefix_tokens]
        return self.layout.from_map(self.projector(self.layout.as_map(grid, prefix)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features in the teacher's layout -> the teacher's logits [B,K] for them."""
        return self.head(x, pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def pool_teacher(self, features: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Bring the teacher's features to the size of `forward_features`: the target of the loss. Never upsampled.

        size: of the student's grid for these very images; not given: for images of the size of training.
        """
        grid, prefix = self.teacher_layout.split(features)
        height, width = size or self.layout.grid
        if grid.shape[2:] != (height, width) and grid.shape[2] >= height and grid.shape[3] >= width:
            grid = F.adaptive_avg_pool2d(grid, (height, width))
        return self.layout.from_map(self.layout.as_map(grid, prefix))

    def compared(self, student_features: Tensor, teacher_features: Tensor) -> tuple[Tensor, Tensor]:
        """Bring both last features, as taps give them, to the teacher's layout and one size: what SimKD compares."""
        student_features, teacher_features = map(self.layout.untapped, (student_features, teacher_features))
        grid, _ = self.layout.split(student_features)
        return student_features, self.pool_teacher(teacher_features, (grid.shape[2], grid.shape[3]))

    def get_classifier(self) -> nn.Module:
        """Return the teacher's linear layer, frozen."""
        return self.head.classifier

    def no_weight_decay(self) -> set[str]:
        """Name the student's own exceptions from weight decay (position embeddings, say), for timm's optimisers."""
        return {f"student.{name}" for name in getattr(self.student, "no_weight_decay", set)()}


def projector(in_channels: int, layout: Layout, factor: int, signed: bool = False) -> nn.Sequential:
    """1x1, 3x3, 1x1 convolutions without bias, each with batch norm and ReLU: [B,s,H,W] -> [B,t,H,W].

    Parameters: s*m + 2m + 9m^2 + 2m + m*t + 2t, m = floor(t / factor). The last ReLU is left out for a teacher whose
    features can be negative (every ViT), which a ReLU cannot give; the paper's teachers end in a ReLU. For tokens the
    convolutions see columns [B,C,P+H*W,1].
    """
    if not 1 <= factor <= layout.channels:
        raise Refused(f"factor {factor} must be between 1 and the teacher's {layout.channels} channels")
    hidden = layout.channels // factor
    spatial = (
        TokenConv2d(hidden, layout.grid, layout.num_prefix_tokens)
        if layout.kind == "tokens"
        else nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
    )
    norm = TokenBatchNorm if layout.kind == "tokens" else nn.BatchNorm2d
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 1, bias=False),
        norm(hidden),
        nn.ReLU(inplace=True),
        spatial,
        norm(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, layout.channels, 1, bias=False),
        norm(layout.channels),
        nn.Identity() if signed else nn.ReLU(inplace=True),
    )


class TokenBatchNorm(nn.BatchNorm1d):
    """A batch norm of tokens [B,C,P+H*W,1], computed on [B,C,P+H*W].

    On a CPU, torch 2.15's four-dimensional backward is silently and entirely wrong if one side of the map is 1 and the
    gradient's memory format is not the map's: strides of [B,C,N,1] fit two memory formats.
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.squeeze(-1)).unsqueeze(-1)


class TokenConv2d(nn.Conv2d):
    """A 3x3 convolution of tokens [B,C,P+H*W,1].

    The patches lie on their grid; each prefix token is a map of one pixel, which meets only the kernel's centre.
    """

    def __init__(self, channels: int, grid: tuple[int, int], num_prefix_tokens: int) -> None:
        super().__init__(channels, channels, 3, padding=1, bias=False)
        self.grid, self.num_prefix_tokens = grid, num_prefix_tokens

    def forward(self, input: Tensor) -> Tensor:
        prefix, patches = input.tensor_split((self.num_prefix_tokens,), dim=2)
        patches = super().forward(patches.squeeze(-1).unflatten(2, self.grid)).flatten(2).unsqueeze(-1)
        if not self.num_prefix_tokens:  # convolutions take no empty input
            return patches
        return torch.cat([F.conv2d(prefix, self.weight[:, :, 1:2, 1:2]), patches], dim=2)


def frozen(module: nn.Module) -> nn.Module:
    """Copy a module, with buffers for its parameters: saved and moved with the model, never trained."""
    module = copy.deepcopy(module)
    for name, parameter in list(module.named_parameters(recurse=False)):
        delattr(module, name)
        module.register_buffer(name, parameter.detach().clone())
    return module


def deployed_parameters(model: nn.Module) -> int:
    """Return the count of numbers to ship: parameters, and those of a reused head; not running statistics."""
    reused = (module for module in model.modules() if isinstance(module, ReusedHead))
    frozen_numbers = sum(buffer.numel() for head in reused for buffer in head.buffers())
    return sum(p.numel() for p in model.parameters()) + frozen_numbers


def remove_head(network: nn.Module, image_size: tuple[int, int]) -> None:
    """Remove, in place, the classifier and every module that `forward_features` does not use.

    Found by their gradients: what the features do not depend on would also stop data-parallel training.
    """
    if not hasattr(network, "reset_classifier"):
        raise Refused(f"{type(network).__name__} has no reset_classifier: the student must be a network of timm")
    network.reset_classifier(0)  # type: ignore[operator]
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    with torch.enable_grad(), evaluating(network):
        total = last_features(network, image_size).sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    idle = {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None}
    for path, module in list(network.named_modules()):
        own = {f"{path}.{name}" for name, _ in module.named_parameters()}
        if own and own <= idle:
            network.set_submodule(path, nn.Identity())
            idle -= own
    if idle:
        raise Refused(f"{type(network).__name__}: {min(idle)} does not contribute to the last features; freeze it")


def _gives_own_logits(head: TeacherHead, teacher: nn.Module, features: Tensor) -> bool:
    """Whether the head, as read off, turns features into the teacher's pooled vector and logits."""
    if head.classifier.weight.shape[1] != head.layout.channels:
        return False
    reused = ReusedHead(head)
    for pre_logits in (True, False):  # the vector too: a classifier of zeros would accept any
        own = teacher.forward_head(features, pre_logits=pre_logits)  # type: ignore[operator]
        again = reused(features, pre_logits=pre_logits)
        if own.shape != again.shape or not torch.allclose(own, again, rtol=1e-3, atol=1e-4):
            return False
    return True


def _norm_before_classifier(teacher: nn.Module) -> nn.LayerNorm | None:
    """Find the layer norm between pooling and classifier, which timm's ViTs call fc_norm and ConvNeXts head.norm."""
    for owner, name in ((teacher, "fc_norm"), (getattr(teacher, "head", None), "norm")):
        norm = getattr(owner, name, None)
        if isinstance(norm, nn.LayerNorm):
            plain = nn.LayerNorm(norm.normalized_shape, norm.eps, norm.elementwise_affine, norm.bias is not None)
            plain.load_state_dict(norm.state_dict())
            return plain.to(next(teacher.parameters()))  # device and dtype
    return None


def _pool(grid: Tensor, before: Layout, after: Layout) -> Tensor:
    """Bring a map of one layout to the size of another; equal sizes leave it as it is, for images of any size."""
    return grid if before.grid == after.grid else F.adaptive_avg_pool2d(grid, after.grid)


def _smaller(student: tuple[int, int], teacher: tuple[int, int]) -> tuple[int, int]:
    """Return the grid that both can be pooled to: the one that is smaller in both height and width."""
    for one, other in ((student, teacher), (teacher, student)):
        if one[0] <= other[0] and one[1] <= other[1]:
            return one
    raise Refused(f"the student's map {list(student)} and the teacher's {list(teacher)}: neither contains the other")
