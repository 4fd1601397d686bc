"""The `cache` command from end to end, in this process, and the arithmetic of its advice."""

import pytest
import safetensors.torch
import torch
import yaml

from cluster.cache.outlook import Outlook, Speeds
from kdcore.configs import ModelConfig
from kdcore.models import build_model
from ops.__main__ import main


@pytest.fixture
def recipe_file(recipe, tmp_path) -> str:
    torch.manual_seed(7)
    model = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c"))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    data = recipe(
        teacher={"model": "cifar_resnet8", "checkpoint": str(tmp_path / "teacher.safetensors")},
        method=[{"term": "kd", "weight": 1.0, "temperature": 4.0}],
        views__num_views=2,
        cache__dir=str(tmp_path / "cache"),
        scaling__num_workers=0,
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    return str(tmp_path / "recipe.yaml")


def test_build_verify_info_train(recipe_file, tmp_path, capsys):
    assert main(["cache", "build", recipe_file]) == 0
    shown = capsys.readouterr().out
    assert "111 of 111 rows (100.00%)" in shown
    assert "train logits" in shown
    assert main(["cache", "build", recipe_file]) == 0
    assert "111 of 111 rows are there already" in capsys.readouterr().out
    assert main(["cache", "verify", recipe_file, "--rows", "10"]) == 0
    assert "checksums agree" in capsys.readouterr().out
    assert main(["cache", "info", str(tmp_path / "cache")]) == 0
    shown = capsys.readouterr().out
    assert "cifar_resnet8" in shown
    assert "demo/distilled" in shown
    assert "demo/alone" not in shown, "which reads no teacher"
    assert main(["train", recipe_file, "teacher.source=cache"]) == 0
    assert "agreement with the teacher" in capsys.readouterr().out


def test_refusals_are_one_line(recipe_file, tmp_path, capsys):
    assert main(["cache", "info", str(tmp_path / "nothing")]) == 2
    assert main(["train", recipe_file, "teacher.source=cache"]) == 2
    assert main(["cache", "build", recipe_file, "views.num_views=null"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stillhouse:")]
    assert ["is not finished, or is not a cache" in line for line in lines] == [True, True, False]
    assert "views.num_views is open" in lines[2]


def test_plan_measures_this_machine(recipe_file, capsys):
    assert main(["cache", "plan", recipe_file, "--seconds", "0.05"]) == 0
    shown = capsys.readouterr().out
    assert "recommended: " in shown
    assert "2 views x 6 bytes" in shown


def outlook(overlap: bool, **speeds: float) -> Outlook:
    return Outlook(Speeds(overlap=overlap, **speeds), 1000, 10, epochs=20, num_workers=2, row_bytes=64)


def test_arithmetic_on_a_gpu():
    """1,000 images on 2 workers, the loader beside the networks: 500 (1/100 + 1/400) s online, 500/400 s cached, and
    10 views of 500/100 s to build."""
    seen = outlook(True, loader=1000.0, teacher=100.0, student=400.0)
    assert seen.online_seconds == pytest.approx(6.25)
    assert seen.cached_seconds == pytest.approx(1.25)
    assert seen.build_seconds == pytest.approx(50.0)
    assert seen.break_even_epochs == pytest.approx(10.0)
    assert seen.num_bytes == 640_000
    assert seen.recommendation.startswith("cache: it is paid for within one run of 20 epochs")


def test_arithmetic_on_shared_cores():
    """The loader takes its turn: 500 (1/500 + 1/100 + 1/50) s online, without the middle term cached."""
    seen = outlook(False, loader=500.0, teacher=100.0, student=50.0)
    assert seen.online_seconds == pytest.approx(16.0)
    assert seen.cached_seconds == pytest.approx(11.0)
    assert seen.break_even_epochs == pytest.approx(60.0 / 5.0)


def test_no_cache_where_the_loader_is_the_bottleneck():
    seen = outlook(True, loader=50.0, teacher=1000.0, student=400.0)
    assert seen.break_even_epochs is None
    assert "the loader gives 50 images/s and is the bottleneck" in seen.recommendation


def test_a_cache_that_takes_several_runs():
    """Saved: 5 s an epoch; built in 50 s and 4 epochs a run: paid for in the third."""
    seen = Outlook(Speeds(1000.0, 100.0, 400.0, True), 1000, 10, epochs=4, num_workers=2, row_bytes=64)
    assert seen.recommendation.startswith("cache for 3 runs or more")
