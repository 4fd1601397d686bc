import pytest
import yaml
from rich.console import Console

from kdcore.errors import Refused
from kdcore.quality.score import Quality
from kdcore.terms import Pair, parse_term
from ops.layers import plot, recommendation_yaml, render_table

QUALITY = {
    "layer1.0": Quality(0.125, 0.25, 1.0, samples=5000, dims=16384, effective_dims=12.25),
    "layer2.0": Quality(0.5, 0.09, 1.0, samples=5000, dims=8192, effective_dims=30.5),
}
PAIRS = (Pair(student="blocks.0", teacher="layer1.0"), Pair(student="blocks.3", teacher="layer2.0"))


def printed(table) -> list[str]:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def test_the_table_has_every_figure_of_every_tap_in_order():
    lines = printed(render_table(QUALITY, PAIRS[1:]))
    assert "5,000 images" in lines[0]
    first, second = (line for line in lines if "layer" in line and "quality" not in line)
    assert first.replace("│", " ").split() == ["layer1.0", "16,384", "12.2", "0.1250", "0.2500", "1.0000", "0.6250"]
    assert second.replace("│", " ").split()[-3:] == ["1.0000", "0.8000", "blocks.3"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_is_written_in_the_format_of_its_name(tmp_path, suffix):
    path = tmp_path / f"layers.{suffix}"
    plot(QUALITY, path, PAIRS[:1])
    head = path.read_bytes()
    assert head.startswith(b"\x89PNG") if suffix == "png" else b"<svg" in head


def test_the_recommendation_is_a_method_that_a_recipe_accepts():
    method = yaml.safe_load(recommendation_yaml(PAIRS))["method"]
    features, labels = (parse_term(term) for term in method)
    assert (features.term, features.weight, features.pairs) == ("feature_only", 1, PAIRS)
    assert (labels.term, labels.weight) == ("ce", 1)
    assert features.needs().detach_head_at == "blocks.3"
    assert features.needs().teacher_taps == {"layer1.0", "layer2.0"}


def test_the_head_may_begin_elsewhere():
    (features, _) = yaml.safe_load(recommendation_yaml(PAIRS, detach_head_at="blocks.0"))["method"]
    assert parse_term(features).needs().detach_head_at == "blocks.0"


def test_no_pair_is_refused():
    with pytest.raises(Refused, match="no pair"):
        recommendation_yaml(())
