"""How an exported network is built around its weights: by timm alone, by this project, or with somebody's own code.

What decides is who makes the network of a name, not whose class it has: a person's function may return one of timm's,
and a plug-in may register one under a name that timm alone does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.models import is_model, load_model_config_from_hf, model_entrypoint
from torch import nn

from kdcore.configs import ModelConfig
from kdcore.hub import hub_if_it_answers
from kdcore.named_models import HF_HUB, TORCHVISION, module_of


@dataclass(frozen=True)
class Construction:
    """What builds a network.

    args: beside its number of classes; in_timm: timm alone can build it; needs_code: whether a person's own builds it.
    """

    architecture: str
    args: dict[str, Any]
    in_timm: bool
    needs_code: bool

    @classmethod
    def of(cls, config: ModelConfig, network: nn.Module) -> Construction:
        """Tell how the network that a recipe names is built; a hub's repository stands for what its file names."""
        config = config.resolved()
        architecture, args = config.model, dict(config.args)
        if architecture.startswith(HF_HUB):
            with hub_if_it_answers():
                _, architecture, of_hub = load_model_config_from_hf(architecture.removeprefix(HF_HUB))
            args = {**(of_hub or {}), **args}
        args.pop("num_classes", None)
        maker = maker_of(architecture)
        in_timm = maker == "timm" and module_of(architecture) is None and type(network).__module__.startswith("timm.")
        return cls(architecture, args, in_timm, maker not in ("timm", "torchvision", "kdcore"))


def maker_of(architecture: str) -> str:
    """Return the top-level module of the function that makes the network of a name."""
    if architecture.startswith(TORCHVISION):
        return "torchvision"
    module = module_of(architecture)
    if module is None:
        assert is_model(architecture), "a network that was built"
        module = model_entrypoint(architecture).__module__
    return module.partition(".")[0]
