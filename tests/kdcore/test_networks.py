"""The registered networks: the published sizes, timm's model contract, and a published checkpoint."""

import io
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import kdcore.networks  # noqa: F401  registers the networks
from kdcore.taps import FeatureTaps

torch.set_num_threads(1)  # for tensors this small, threads that contend for cores cost far more than they give

# name: parameters with 100 classes; the published millions; the last map [C,H,W] at 32 pixels; whether it is signed.
CIFAR_NETWORKS = {
    "cifar_resnet8": (83_892, 0.08, (64, 8, 8), False),
    "cifar_resnet14": (181_108, 0.18, (64, 8, 8), False),
    "cifar_resnet20": (278_324, 0.28, (64, 8, 8), False),
    "cifar_resnet32": (472_756, 0.47, (64, 8, 8), False),
    "cifar_resnet44": (667_188, 0.67, (64, 8, 8), False),
    "cifar_resnet56": (861_620, 0.86, (64, 8, 8), False),
    "cifar_resnet110": (1_736_564, 1.74, (64, 8, 8), False),
    "cifar_resnet8x4": (1_233_540, 1.23, (256, 8, 8), False),
    "cifar_resnet32x4": (7_433_860, 7.43, (256, 8, 8), False),
    "cifar_resnet9": (4_949_412, 4.95, (512, 4, 4), False),
    "cifar_resnet34": (21_328_292, 21.33, (512, 4, 4), False),
    "cifar_resnet50": (23_705_252, 23.71, (2048, 4, 4), False),
    "cifar_wrn_16_2": (703_284, 0.70, (128, 8, 8), False),
    "cifar_wrn_40_1": (569_780, 0.57, (64, 8, 8), False),
    "cifar_wrn_40_2": (2_255_156, 2.26, (128, 8, 8), False),
    "cifar_vgg8": (3_965_028, 3.97, (512, 4, 4), False),
    "cifar_vgg13": (9_462_180, 9.46, (512, 4, 4), False),
    "cifar_vgg11_hidden": (28_518_244, 28.52, (512, 1, 1), False),
    "cifar_vgg19_hidden": (39_327_652, 39.33, (512, 1, 1), False),
    "cifar_mobilenetv2": (2_351_972, 2.35, (1280, 2, 2), False),
    "cifar_mobilenetv2_half": (812_836, 0.81, (160, 2, 2), True),
    "cifar_shufflenetv1": (949_258, 0.95, (960, 4, 4), False),
    "cifar_shufflenetv2": (1_355_528, 1.36, (464, 4, 4), False),
}
# Those whose head widens the map before pooling: the width that the classifier reads.
WIDENED = {
    "cifar_mobilenetv2_half": 1280,
    "cifar_shufflenetv2": 1024,
    "cifar_vgg11_hidden": 4096,
    "cifar_vgg19_hidden": 4096,
}
DATA = Path(__file__).parents[2].parent / "shared" / "data"


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_every_cifar_network_is_registered_and_none_is_missing_here():
    assert set(timm.list_models("cifar_*")) == set(CIFAR_NETWORKS)


@pytest.mark.parametrize("name", CIFAR_NETWORKS)
def test_network(name):
    parameters, millions, map_shape, signed = CIFAR_NETWORKS[name]
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=100, in_chans=3).eval()
    assert count(network) == parameters
    assert round(parameters / 1e6, 2) == millions

    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = network.forward_features(images)
        logits = network(images)
        pooled = network.forward_head(features, pre_logits=True)
    assert features.shape == (2, *map_shape)
    assert network.num_features == map_shape[0]
    assert bool((features < 0).any()) is signed
    assert pooled.shape == (2, network.head_hidden_size) == (2, WIDENED.get(name, map_shape[0]))
    assert logits.shape == (2, 100)
    torch.testing.assert_close(logits, network.forward_head(features), rtol=0, atol=0)
    torch.testing.assert_close(logits, network.get_classifier()(pooled), rtol=0, atol=0)
    if name not in WIDENED:
        torch.testing.assert_close(pooled, features.mean(dim=(2, 3)))

    network.reset_classifier(7)
    assert (network.num_classes, network(images).shape) == (7, (2, 7))
    network.reset_classifier(0)
    assert count(network) == parameters - 100 * (network.head_hidden_size + 1)
    torch.testing.assert_close(network(images), pooled)


@pytest.mark.parametrize("name", CIFAR_NETWORKS)
def test_default_config_names_the_classifier_the_stem_and_the_statistics(name):
    network = timm.create_model(name)
    config = network.default_cfg
    assert network.num_classes == config["num_classes"] == 100
    assert network.get_submodule(config["classifier"]) is network.get_classifier()
    assert network.get_submodule(config["first_conv"]).in_channels == 3
    data = timm.data.resolve_model_data_config(network)
    assert (data["input_size"], data["crop_pct"]) == ((3, 32, 32), 1.0)
    assert data["mean"] == (0.5071, 0.4865, 0.4409)
    assert data["std"] == (0.2673, 0.2564, 0.2762)
    # Taps: layer1, layer2, ... exist and end with the last stage; one network keeps timm's names.
    assert name == "cifar_mobilenetv2" or [n for n, _ in network.named_children() if n.startswith("layer")][:3] == [
        "layer1",
        "layer2",
        "layer3",
    ]


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_mobilenetv2_half", "cifar_shufflenetv2"])
def test_arguments_of_timm(name):
    network = timm.create_model(name, num_classes=0, in_chans=1, global_pool="max").eval()
    images = torch.randn(2, 1, 32, 32)
    pooled = network(images)
    assert pooled.shape == (2, network.head_hidden_size)
    torch.testing.assert_close(pooled, network.widen(network.forward_features(images)).amax(dim=(2, 3)))
    network.reset_classifier(3, global_pool="avg")
    assert network.global_pool.pool_type == "avg"
    assert network(images).shape == (2, 3)


@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_wrn_16_2", "cifar_vgg8", "cifar_shufflenetv1"])
def test_every_parameter_receives_gradient(name):
    network = timm.create_model(name, num_classes=5)
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


def test_residual_networks_follow_their_definition():
    """ResNet-6n+2 of widths 16-16-32-64, counted by hand: 3x3 convolutions, batch norms, two 1x1 shortcuts."""

    def parameters(depth: int) -> int:
        n, total = (depth - 2) // 6, 3 * 16 * 9 + 2 * 16
        for before, width in ((16, 16), (16, 32), (32, 64)):
            total += before * width * 9 + (2 * n - 1) * width * width * 9 + 2 * n * 2 * width
            total += before * width + 2 * width if before != width else 0
        return total + 64 * 100 + 100

    for depth in (8, 14, 20, 32, 44, 56, 110):
        assert CIFAR_NETWORKS[f"cifar_resnet{depth}"][0] == parameters(depth)


def test_a_pooled_stem_halves_every_map():
    """As the feature-only paper's ResNet-9 for images of 64 pixels; it has no weights of its own."""
    plain, pooled = (timm.create_model("cifar_resnet9", max_pool=on).eval() for on in (False, True))
    pooled.load_state_dict(plain.state_dict())
    assert plain.forward_features(torch.zeros(1, 3, 64, 64)).shape == (1, 512, 8, 8)
    images = torch.randn(2, 3, 64, 64)
    stem = plain.act1(plain.bn1(plain.conv1(images)))
    expected = torch.nn.functional.max_pool2d(stem, 3, stride=2, padding=1)
    for name in plain.stages:
        expected = plain.get_submodule(name)(expected)
    assert expected.shape == (2, 512, 4, 4)
    assert torch.equal(pooled.forward_features(images), expected)


def test_convolutions_are_initialised_kaiming_normal_fan_out():
    torch.manual_seed(0)
    weight = timm.create_model("cifar_resnet8x4").layer3[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)


def test_pre_activated_shortcut_reads_the_activation():
    """Zagoruyko and Komodakis: where the width changes, the shortcut is a 1x1 convolution of ReLU(BN(x))."""
    torch.manual_seed(0)
    block = timm.create_model("cifar_wrn_16_2").eval().layer2[0]
    x = torch.randn(2, 32, 8, 8)
    a = torch.relu(nn.functional.batch_norm(x, block.norm1.running_mean, block.norm1.running_var))
    b = torch.relu(nn.functional.conv2d(a, block.conv1.weight, stride=2, padding=1) / (1 + 1e-5) ** 0.5)
    expected = nn.functional.conv2d(b, block.conv2.weight, padding=1)
    expected += nn.functional.conv2d(a, block.downsample.conv.weight, stride=2)
    torch.testing.assert_close(block(x), expected)


def test_the_hidden_layers_of_a_vgg():
    """Dropout is on in training alone, and a 64-pixel image is averaged to what a 32-pixel image gives."""
    network = timm.create_model("cifar_vgg11_hidden", num_classes=10, drop_rate=0.25)
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.25}
    features = torch.rand(2, 512, 2, 2)
    assert not torch.equal(network.forward_head(features), network.forward_head(features))
    network.eval()
    pooled = features.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(network.forward_head(features), network.forward_head(pooled))


def test_mobilenetv2_keeps_the_resolution_in_its_stem():
    """17 blocks; the map halves at the blocks of Sandler et al., table 2, but not in the stem."""
    network = timm.create_model("cifar_mobilenetv2").eval()
    blocks = [n for n, m in network.named_modules() if n.startswith("blocks.") and n.count(".") == 2]
    sizes = FeatureTaps(network, blocks).shapes((32, 32))
    assert [sizes[n][1] for n in blocks] == [32] + [16] * 2 + [8] * 3 + [4] * 7 + [2] * 4
    assert [sizes[n][0] for n in blocks] == [16] + [24] * 2 + [32] * 3 + [64] * 4 + [96] * 3 + [160] * 3 + [320]


def test_mobilenetv1_is_that_of_the_tables():
    """4.23 M parameters; ReLU, where timm's own network of this shape has ReLU6."""
    network = timm.create_model("mobilenetv1")
    assert count(network) == 4_231_976
    assert {type(m) for m in network.modules() if "ReLU" in type(m).__name__} == {nn.ReLU}
    assert network.default_cfg["mean"] == (0.485, 0.456, 0.406)
    small = timm.create_model("mobilenetv1", num_classes=5).eval()
    assert small.forward_features(torch.randn(1, 3, 64, 64)).shape == (1, 1024, 2, 2)
    assert small(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_no_weights_are_promised():
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        timm.create_model("cifar_resnet8", pretrained=True)


def published_resnet56() -> nn.Module:
    """timm loads a checkpoint strictly."""
    path = DATA / "teachers" / "cifar100_resnet56.safetensors"
    if not path.exists():
        pytest.skip(f"no published checkpoint beside the repository ({path.name})")
    return timm.create_model("cifar_resnet56", num_classes=100, checkpoint_path=path).eval()


def test_published_resnet56_loads_strictly():
    network = published_resnet56()
    assert network.bn1.running_var.min() > 0
    assert network.bn1.num_batches_tracked > 0


@pytest.mark.slow
def test_published_resnet56_recognises_cifar100():
    """72.63 % on all 10,000 test images; the first 1,000 suffice to tell a wrong graph or wrong statistics."""
    parquet = pytest.importorskip("pyarrow.parquet")
    image = pytest.importorskip("PIL.Image")
    network, path = published_resnet56(), DATA / "cifar100" / "test-00000-of-00001.parquet"
    if not path.exists():
        pytest.skip("no CIFAR-100 test images beside the repository")
    rows = next(parquet.ParquetFile(path).iter_batches(1000)).to_pylist()
    pixels = np.stack([np.asarray(image.open(io.BytesIO(row["img"]["bytes"]))) for row in rows])
    mean, std = (torch.tensor(network.default_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        predicted = torch.cat([network(part).argmax(dim=1) for part in images.split(250)])
    assert (predicted == torch.tensor([row["fine_label"] for row in rows])).float().mean() > 0.68
