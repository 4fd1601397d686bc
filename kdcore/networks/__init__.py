"""The networks of the knowledge-distillation tables that timm lacks; importing this package registers them with timm.

Those for 32-pixel images are called `cifar_...` (`timm.list_models("cifar_*")`); the one for ImageNet is `mobilenetv1`.
"""

from kdcore.networks import mobilenet, resnet, shufflenet, vgg

__all__ = ["mobilenet", "resnet", "shufflenet", "vgg"]
