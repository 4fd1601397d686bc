"""Taps: named places of a network whose tensors a forward pass hands out along with the logits.

A tap is a module's path ("layer3.1"), or one of two names that every network of timm has: "forward_features" (the last
map [B,C,H,W], or tokens [B,N,D], before pooling) and "classifier_input" (the vector [B,D] that the classifier reads).

Maps of every network are handed out as [B,C,H,W]: one that is [B,H,W,C] inside it (`kdcore.layout.is_channels_last`;
the blocks of a Swin, for example) is handed out as a view with its channels first; the network itself keeps its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdcore.errors import Refused, did_you_mean
from kdcore.layout import complaint, evaluating, is_channels_last, is_complaint
from kdcore.protocol import find_classifier, has_features

FORWARD_FEATURES = "forward_features"
CLASSIFIER_INPUT = "classifier_input"


class FeatureTaps:
    """A network with taps: `taps(images)` gives the logits [B,K] and {tap: tensor}.

    After the tap `detach_head_at` the network sees a detached copy, so that no loss on the logits reaches the layers
    before it; the tapped tensor itself keeps its graph. Not a module: it owns no weights, and watches the network only
    during its own calls. Its hooks are closures, so that they do nothing in a deep copy of the network. moved: the taps
    that were found channels-last when `shapes` was last called.

    Refused for a tap that the network does not have. For that error: role is what the network is in its run (student,
    teacher), asked_by {tap: what asks for it}, as `kdcore.terms.base.tap_askers` gives it.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Iterable[str],
        detach_head_at: str | None = None,
        *,
        role: str | None = None,
        asked_by: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.names = frozenset(taps) | ({detach_head_at} if detach_head_at else frozenset())
        self.detach_head_at = detach_head_at
        self._captured: dict[str, Tensor] | None = None  # a mapping only while this object runs the network
        self._versions: dict[str, int] | None = None  # likewise: how often each tap's memory was written to
        self._is_probing = False
        self._image_size = (0, 0)  # of the images that it runs the network on
        self.moved: frozenset[str] = frozenset()
        self._handles: list[Any] = []
        modules = dict(model.named_modules())
        architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
        network = f"the {role} {architecture or type(model).__name__}" if role else type(model).__name__
        for name in sorted(self.names):
            who = f"{asked_by[name]}: {network}" if asked_by and name in asked_by else network
            if name == FORWARD_FEATURES and not has_features(model):
                raise Refused(
                    f"{who} has no forward_features and forward_head, so no tap {name!r}; tap a "
                    "module instead, or give the network the two"
                )
            if name == CLASSIFIER_INPUT:
                self._handles.append(_classifier(model, who).register_forward_pre_hook(self._hook_before(name)))
            elif name != FORWARD_FEATURES:
                if name not in modules or name == "":
                    raise Refused(unknown_tap(name, modules, who))
                self._handles.append(modules[name].register_forward_hook(self._hook(name)))

    def __call__(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        captured: dict[str, Tensor] = {}
        versions: dict[str, int] = {}
        self._captured, self._image_size = captured, (images.shape[2], images.shape[3])
        self._versions = versions if writes_are_counted() else None
        try:
            logits = self._forward(images)
        finally:
            self._captured = self._versions = None
        self._check_missing(self.names - captured.keys())
        # In every pass: a dropout, for example, overwrites only in training.
        for name in versions:
            if captured[name]._version != versions[name]:
                self._refuse(name, captured[name], overwritten(name))
        return logits, captured

    def _check_missing(self, missing: frozenset[str]) -> None:
        if missing:
            raise Refused(f"tap {min(missing)!r} of {type(self.model).__name__} does not run in a forward pass")

    def _forward(self, images: Tensor) -> Tensor:
        if not has_features(self.model):
            answer: Tensor = self.model(images)
            return answer
        features = self._visit(FORWARD_FEATURES, self.model.forward_features(images))  # type: ignore[operator]
        logits: Tensor = self.model.forward_head(features)  # type: ignore[operator]
        return logits

    def remove(self) -> None:
        """Take the hooks off the network."""
        for handle in self._handles:
            handle.remove()

    def shapes(self, image_size: tuple[int, int]) -> dict[str, torch.Size]:
        """Return {tap: shape without the batch} for images of [H,W], in running order; Refused for an unusable tap.

        Runs two blank images through the network in eval mode, which changes no state.
        """
        images = next(self.model.parameters()).new_zeros(2, 3, *image_size, requires_grad=bool(self.detach_head_at))
        logits, captured = self._probe(images)
        if logits.requires_grad and torch.autograd.grad(logits.sum(), images, allow_unused=True)[0] is not None:
            raise Refused(
                f"the head cannot be detached at tap {self.detach_head_at!r}: a skip connection leads around it; "
                "tap the block that contains it instead"
            )
        return {name: tensor.shape[1:] for name, tensor in captured.items()}

    def _probe(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and {tap: tensor} of a pass in eval mode. Refused where the network takes no such images."""
        self._is_probing, self.moved = True, frozenset()
        try:
            with evaluating(self.model), torch.set_grad_enabled(images.requires_grad):
                logits, captured = self(images)
        except Exception as error:
            if not is_complaint(error):
                raise
            said = complaint(error, "change the size of the views, or the model's args, such as {img_size: ...}")
            raise Refused(f"{type(self.model).__name__} rejects images of {list(images.shape[2:])} {said}") from error
        finally:
            self._is_probing = False
        if not isinstance(logits, Tensor):
            raise Refused(
                f"{type(self.model).__name__} answers images with a {type(logits).__name__}, not with logits [B,K]; "
                "have it return these alone"
            )
        return logits, captured

    def _visit(self, name: str, value: Any) -> Any:
        """Keep the value of a tap, and return what the rest of the network is to see."""
        if self._captured is None or name not in self.names:
            return value
        if not isinstance(value, Tensor):
            return self._refuse(
                name, value, f"tap {name!r} gives a {type(value).__name__}, not one tensor; tap a module inside it"
            )
        if name in self._captured:
            return self._refuse(
                name, value, f"tap {name!r} runs more than once in a forward pass; tap the block that contains it"
            )
        moves = gives_channels_last(self.model, name, value.shape, self._image_size)
        self._captured[name] = value.permute(0, 3, 1, 2) if moves else value
        if self._versions is not None:
            self._versions[name] = value._version  # also of a view: both count the same writes
        if self._is_probing:
            self.moved |= {name} if moves else set()
        return value.detach() if name == self.detach_head_at else value

    def _refuse(self, name: str, value: Any, reason: str) -> Any:
        """Refuse a tap's value."""
        raise Refused(reason)

    def _hook(self, name: str) -> Any:
        return lambda module, args, output: self._visit(name, output)

    def _hook_before(self, name: str) -> Any:
        return lambda module, args: (self._visit(name, args[0]), *args[1:])


def usable_taps(model: nn.Module, names: Iterable[str], image_size: tuple[int, int]) -> dict[str, torch.Size]:
    """Return {tap: shape without the batch} of the names that can be tapped, found in one forward pass.

    Names that the network does not have, and those that `FeatureTaps.shapes` refuses, are left out. In the given order.
    """
    found = []
    for name in dict.fromkeys(names):
        try:
            FeatureTaps(model, [name]).remove()
        except Refused:
            continue
        found.append(name)
    survey = _Survey(model, found)
    try:
        shapes = survey.shapes(image_size)
    finally:
        survey.remove()
    return {name: shapes[name] for name in found if name in shapes}


class _Survey(FeatureTaps):
    """Taps some of which may be unusable: those are left out of `shapes` instead of refused."""

    def __init__(self, model: nn.Module, taps: Iterable[str]) -> None:
        super().__init__(model, taps)
        self._unusable: set[str] = set()

    def shapes(self, image_size: tuple[int, int]) -> dict[str, torch.Size]:
        """Return {tap: shape without the batch} of the usable taps, as `FeatureTaps` does."""
        images = next(self.model.parameters()).new_zeros(2, 3, *image_size)
        _, captured = self._probe(images)
        return {name: tensor.shape[1:] for name, tensor in captured.items() if name not in self._unusable}

    def _check_missing(self, missing: frozenset[str]) -> None:
        pass

    def _refuse(self, name: str, value: Any, reason: str) -> Any:
        self._unusable.add(name)
        return value


def writes_are_counted() -> bool:
    """Return whether tensors count the writes to them: not in inference mode, and not under a compiler."""
    return not (torch.compiler.is_compiling() or torch.is_inference_mode_enabled())


def overwritten(name: str) -> str:
    """Return the text that refuses a tap whose tensor has been overwritten when the forward pass ends."""
    return (
        f"tap {name!r} is overwritten in place by the layer behind it (an in-place activation, or in training a "
        "dropout); tap that layer, or the block that contains it, instead"
    )


def gives_channels_last(model: nn.Module, tap: str, shape: Sequence[int], image_size: tuple[int, int]) -> bool:
    """Whether the network's own tensor at a tap, of shape [B,...], is a map [B,H,W,C].

    The innermost network around the tap decides: SimKD's student is one network inside another.
    """
    if len(shape) != 4 or tap in (FORWARD_FEATURES, CLASSIFIER_INPUT):
        return is_channels_last(shape, image_size, model)
    network = module = model
    for key in tap.split("."):
        network = module if hasattr(module, "forward_features") else network
        module = module.get_submodule(key)
    return is_channels_last(shape, image_size, network, module)


def _classifier(model: nn.Module, who: str) -> nn.Module:
    classifier = find_classifier(model)
    if classifier is not None:
        return classifier
    if not hasattr(model, "get_classifier"):
        reason = f"no get_classifier(), and not one linear layer with {model.num_classes} outputs"
    else:
        reason = f"no single classifier (but a {type(model.get_classifier()).__name__})"  # type: ignore[operator]
    raise Refused(f"{who} has {reason}, so no tap {CLASSIFIER_INPUT!r}; tap a module instead")


def unknown_tap(name: str, modules: Iterable[str], network: str) -> str:
    """Return the text that refuses an unknown tap, with the nearest names, or the network's outermost ones."""
    known = [*(m for m in modules if m), FORWARD_FEATURES, CLASSIFIER_INPUT]
    outermost = f"it has {', '.join(m for m in known if '.' not in m)} (and what is inside them)"
    return f"{network} has no tap {name!r}; {did_you_mean(name, known, outermost, n=6)}"
