"""Building a network from its recipe, with its weights: from timm, torchvision, a folder, or a user's own code.

timm's registry knows this project's networks too. Not here: the networks themselves (`kdcore.networks`), what one must
have (`kdcore.protocol`), and SimKD's student graph (`kdcore.reused`).
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from typing import Any

import timm
import torch
from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from timm.data.config import resolve_model_data_config
from torch import nn
from torchvision import models

import kdcore.networks  # noqa: F401  registers the CIFAR networks with timm
from kdcore.batch import Statistics
from kdcore.configs import ModelConfig
from kdcore.errors import Refused, typed_line
from kdcore.fitting import holds_more, load_backbone, load_weights, refuse_fresh_classifier
from kdcore.hub import hub_if_it_answers
from kdcore.local_dir import read_local_dir
from kdcore.located import local_file
from kdcore.named_models import HF_HUB, LOCAL_DIR, TORCHVISION, builder_of, check_torchvision, module_of, own_place
from kdcore.protocol import conform, find_classifier


def build_backbone(config: ModelConfig) -> nn.Module:
    """Build the network without its classifier, its weights loaded: images [B,3,H,W] -> features [B,D]."""
    config.check()
    model = _create(config, {"num_classes": 0})
    of_file = config.resolved()
    if of_file.checkpoint and of_file.checkpoint_keys == "positions" and holds_more(of_file, model):
        return _without_classifier(config)
    if of_file.checkpoint:
        load_backbone(model, of_file)
    return model


def _without_classifier(config: ModelConfig) -> nn.Module:
    """Build the network with its classifier, whose tensors are told apart only by position, then remove that."""
    model = _create(config, {})
    load_weights(model, config.resolved())
    if hasattr(model, "reset_classifier"):
        model.reset_classifier(0)  # type: ignore[operator]
    else:
        _remove_classifier(model)
    return model


def build_model(config: ModelConfig, class_names: list[str] | tuple[str, ...]) -> nn.Module:
    """Build the network with one output per class name, its weights loaded."""
    config.check()
    folder = read_local_dir(config.model) if config.model.startswith(LOCAL_DIR) else None
    by_name = folder is not None and not config.class_indices and not config.new_head
    outputs = folder.output_indices(class_names, config.fresh) if folder and by_name else None
    num_classes = folder.num_classes if folder and outputs else len(class_names)
    own_classes: dict[str, Any] = {} if config.class_indices else {"num_classes": num_classes}
    model = _create(config, own_classes)
    config = config.resolved()
    if config.checkpoint:
        load_weights(model, config, class_names)
    elif config.pretrained and not config.class_indices:
        refuse_fresh_classifier(model, config, class_names)
    if config.class_indices:
        outputs = _class_indices(config.class_indices, class_names)
    if outputs is not None and outputs != list(range(int(model.num_classes))):  # type: ignore[arg-type]
        keep_classes(model, outputs)
    return model


def _create(config: ModelConfig, own_classes: dict[str, Any]) -> nn.Module:
    """Create the network that the recipe names, a folder's with the preprocessing that this states."""
    model = _from_source(config.resolved(), own_classes)
    if config.model.startswith(LOCAL_DIR):
        of_recipe = config.args.get("pretrained_cfg_overlay") or {}  # as with all arguments, it wins over the folder
        own_cfg: Any = model.pretrained_cfg
        model.pretrained_cfg = {**own_cfg, **read_local_dir(config.model).preprocessing, **of_recipe}  # type: ignore[assignment]
    return model


def _from_source(config: ModelConfig, own_classes: dict[str, Any]) -> nn.Module:
    """Create the network from the source in its name. Refused, with the error raised, if that fails."""
    num_classes = own_classes.get("num_classes", config.args.get("num_classes", 1000))
    try:
        if module_of(config.model) is not None:
            made = builder_of(config.model)(**own_classes, **config.args)
        elif config.model.startswith(TORCHVISION):
            made = _from_torchvision(config, own_classes)
        else:
            with hub_if_it_answers() if fetches(config) else nullcontext():
                made = timm.create_model(config.model, pretrained=config.pretrained, **own_classes, **config.args)
        return conform(made, config.model, num_classes)
    except Refused:
        raise
    except Exception as error:
        # Networks refuse an argument, or to be built at all, in their own ways: by TypeError, AssertionError, ...
        raise Refused(_not_built(config, error)) from error


def _not_built(config: ModelConfig, error: Exception) -> str:
    """Return the error text for a network whose maker raised an error: what cannot be built, why, and the remedy."""
    is_own, place = module_of(config.model) is not None, own_place(error)
    if isinstance(error, OSError) and not (is_own or place):  # no network, or no such weights
        maker = "torchvision" if config.model.startswith(TORCHVISION) else "timm"
        return (
            f"model {config.model!r}: {maker} cannot fetch its weights ({type(error).__name__}); on a machine without "
            "that network, give a file: pretrained=false checkpoint=FILE, and new_head=true where it is of other "
            "classes (`demo`: --teacher-weights FILE)"
        )
    reason = f"{typed_line(error, length=None)}{place}"
    if is_own and isinstance(error, TypeError) and "'num_classes'" in reason and "num_classes" not in config.args:
        return (
            f"model {config.model!r} does not take num_classes ({reason}); have it take this argument, the number of "
            "its outputs"
        )
    if config.args:
        return (
            f"model {config.model!r} does not take args {config.args} ({reason}); correct or leave out student.args or "
            "teacher.args"
        )
    if is_own or place:
        return (
            f"your code cannot build the model {config.model!r} ({reason}); correct that line, or give the args that "
            "it needs"
        )
    return (
        f"timm {timm.__version__} cannot build the model {config.model!r} ({reason}); give the args that it needs, or "
        "take another model"
    )


def brings_classifier(config: ModelConfig, num_classes: int) -> bool:
    """Return whether a network for so many classes has its classifier from its weights, and not a fresh one.

    Of weights on the hub, whose classes are known only there: False.
    """
    if config.new_head:
        return False
    if config.weights_file is not None or not config.pretrained:
        return config.weights_file is not None
    if config.model.startswith(TORCHVISION):
        rows: int | None = len(models.get_model_weights(check_torchvision(config.model)).DEFAULT.meta["categories"])
    else:
        known = None if config.model.startswith(HF_HUB) else timm.get_pretrained_cfg(config.model)
        rows = known.num_classes if known is not None else None
    outputs = config.args.get("num_classes", rows) if config.class_indices else num_classes
    return rows is not None and bool(outputs == rows)


def fetches(config: ModelConfig) -> bool:
    """Return whether timm asks the hub for a network: for its weights or its definition."""
    return config.pretrained or config.model.startswith(HF_HUB)


def _from_torchvision(config: ModelConfig, own_classes: dict[str, Any]) -> nn.Module:
    """Build one of torchvision's classifiers; pretrained weights of other classes get a fresh last layer."""
    name = check_torchvision(config.model)
    headless = own_classes.get("num_classes") == 0
    if not config.pretrained:
        made: nn.Module = models.get_model(name, weights=None, **own_classes, **config.args)
        if headless:  # its last layer has no outputs then, where timm's is gone
            made.num_classes = 0  # type: ignore[assignment]
            _remove_classifier(made)
        return made
    weights = models.get_model_weights(name).DEFAULT
    made = models.get_model(name, weights=weights, **config.args)
    num_classes: Any = len(weights.meta["categories"])
    made.num_classes = num_classes
    preprocessing = weights.transforms()
    own_cfg: Any = {
        "mean": tuple(preprocessing.mean),
        "std": tuple(preprocessing.std),
        "num_classes": num_classes,  # as timm has it: of the weights, whatever the network's last layer becomes
    }
    made.pretrained_cfg = own_cfg
    wanted = own_classes.get("num_classes", made.num_classes)
    if headless:
        _remove_classifier(made)
    elif wanted != made.num_classes:
        old = classifier_of(made)
        _replace_classifier(made, nn.Linear(old.in_features, wanted, old.bias is not None))
    return made


def _class_indices(path: str, class_names: list[str] | tuple[str, ...]) -> list[int]:
    """Read the index of each class from a JSON file {class folder: index}. Refused for two classes with one index."""
    content = local_file(path).read_bytes()
    try:
        indices = TypeAdapter(dict[str, NonNegativeInt]).validate_json(content)
    except ValidationError as error:
        example = ", ".join(f'"{name}": {index}' for name, index in zip(class_names, (0, 3), strict=False))
        raise Refused(
            f"{path}: not a JSON file {{class folder: index}}, such as {{{example}}} "
            f"({error.errors()[0]['msg']}); write it so"
        ) from error
    missing = [name for name in class_names if name not in indices]
    if missing:
        raise Refused(f"{path} has no index for the class folder {missing[0]!r} ({len(missing)} missing); add it")
    twice = [name for name, times in Counter(json.loads(content, object_pairs_hook=_names)).items() if times > 1]
    if twice:
        raise Refused(f"{path} gives the class folder {twice[0]!r} an index twice; leave the wrong one out")
    first: dict[int, str] = {}
    for name in class_names:
        if (other := first.setdefault(indices[name], name)) != name:
            raise Refused(
                f"{path} gives the class folders {other!r} and {name!r} the same index {indices[name]}, and an output "
                "stands for one class; correct it"
            )
    return [indices[name] for name in class_names]


def _names(pairs: list[tuple[str, Any]]) -> list[str]:
    return [name for name, _ in pairs]


def classifier_of(model: nn.Module) -> nn.Linear:
    """Return the network's linear classifier. Refused if it does not have one."""
    classifier = find_classifier(model)
    if classifier is None and not hasattr(model, "get_classifier"):
        raise Refused(
            f"{type(model).__name__} has no get_classifier(), and not one linear layer with {model.num_classes} "
            "outputs; give the network get_classifier()"
        )
    if not isinstance(classifier, nn.Linear):
        found = model.get_classifier() if classifier is None else classifier  # type: ignore[operator]
        raise Refused(f"{type(model).__name__}: its classifier is a {type(found).__name__}, not one linear layer")
    return classifier


def keep_classes(model: nn.Module, indices: list[int]) -> None:
    """Reduce the network's classifier to the given rows, in their order, in place. Refused for a row it lacks."""
    old = classifier_of(model)
    outside = [index for index in indices if not 0 <= index < old.out_features]
    if outside:
        raise Refused(f"class index {outside[0]} is not one of the classifier's {old.out_features} rows")
    bias = old.bias is not None
    new = nn.Linear(old.in_features, len(indices), bias, old.weight.device, old.weight.dtype)
    with torch.no_grad():
        new.weight.copy_(old.weight[indices])
        if bias:
            new.bias.copy_(old.bias[indices])
    _replace_classifier(model, new)


def _remove_classifier(model: nn.Module) -> None:
    """Let the network answer with the input of its classifier; a file's is left out by the name that it had."""
    old = classifier_of(model)
    name = next(n for n, module in model.named_modules() if module is old)
    model.set_submodule(name, nn.Identity())
    model.num_classes = 0  # type: ignore[assignment]
    own_cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    model.pretrained_cfg = {**own_cfg, "classifier": name}  # type: ignore[assignment]


def _replace_classifier(model: nn.Module, new: nn.Linear) -> None:
    """Replace the network's classifier by a linear layer."""
    old = classifier_of(model)
    model.set_submodule(next(n for n, module in model.named_modules() if module is old), new)
    model.num_classes = new.out_features  # type: ignore[assignment]


def input_statistics(model: nn.Module) -> Statistics:
    """Return the mean and std (of RGB in [0,1]) that the network's weights were trained with; timm keeps them."""
    assert getattr(model, "pretrained_cfg", None), "timm would answer with ImageNet's statistics"
    config = resolve_model_data_config(model)
    return tuple(config["mean"]), tuple(config["std"])


def statistics_without_files(config: ModelConfig) -> Statistics:
    """Return a recipe's `input_statistics`, which are of its architecture or its folder, without reading weights."""
    bare = config.without_files()
    bare.check()
    return input_statistics(_create(bare, {"num_classes": 2}))


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters, trained or not; running statistics are not parameters."""
    return sum(p.numel() for p in module.parameters())
