"""How an exported network is built around its weights: by timm alone, by this project, or with a user's own code.

What decides is where the function that a name stands for is defined, not the network's class: a user's function may
return one of timm's networks, and a plug-in may register one under a name that timm alone does not know.
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

    args: except its number of classes; in_timm: timm alone can build it; needs_code: a user's own code builds it.
    """

    architecture: str
    args: dict[str, Any]
    in_timm: bool
    needs_code: bool

    @classmethod
    def of(cls, config: ModelConfig, network: nn.Module) -> Construction:
        """Return how a recipe's network is built; for a repository on a hub, how the network that its file names is."""
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
