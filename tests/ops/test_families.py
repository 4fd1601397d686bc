"""Each kind of architecture in every role of a run: it works, or is refused in one line before training.

pytorch#134242 (cait), coat's shared tensors, fastvit on a CPU: crashes of 19 in 545 tries before. All families are in
`ops/benchmarks/results/families.json` (`make families`); here is one of each kind, which must come to the same again.
"""

from importlib.util import find_spec

import pytest
import timm

from ops.benchmarks.families import PAGE, ROLES, kind, read_result, try_network, with_table, write_images

FOUND = read_result()
KINDS = {
    "convolutions": "resnet.ResNet",
    "depthwise convolutions": "ghostnet.GhostNet",
    "a map with channels last": "convnext.ConvNeXt",
    "tokens": "convit.ConVit",
    "tokens and a class token handed to a submodule": "cait.Cait",
    "two classifiers": "levit.LevitDistilled",
    "two branches": "crossvit.CrossVit",
    "shared tensors, a list of features": "coat.CoaT",
    "convolutions folded when deployed": "fastvit.FastVit",
    "windows": "swin_transformer.SwinTransformer",
    "no logits": "gemma4_vit.Gemma4VitEncoder",
}
# The first three are in other tests' runs, too; the others take long.
LONG = ("convolutions", "depthwise convolutions", "tokens", "two branches", "windows")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("shown", [pytest.param(one, marks=pytest.mark.long) if one in LONG else one for one in KINDS])
def test_a_family_of_each_kind(images, shown):
    row = next(row for row in FOUND["rows"] if row["family"] == KINDS[shown])
    model, own = FOUND["representatives"][row["family"]]
    again = try_network(model, own, str(images))
    assert {role: again[role] for role in ROLES} == {role: row[role] for role in ROLES}
    assert (again["size"], again["args"]) == (row["size"], row["args"])


def test_no_family_crashes():
    outcomes = {(row["family"], role): row[role] for row in FOUND["rows"] for role in ROLES}
    assert not {where: outcome for where, outcome in outcomes.items() if kind(outcome) not in ("works", "refused")}
    assert all("\n" not in outcome for outcome in outcomes.values())


def test_every_module_of_timm_is_represented():
    """Another version of timm may have others: then `make families` is due, which tries what has not been tried."""
    known = list(FOUND["representatives"])
    theirs = {name for name in timm.list_modules() if find_spec(f"timm.models.{name}")}  # other tests register networks
    assert theirs <= {family.partition(".")[0] for family in known}
    tried = [row["family"] for row in FOUND["rows"]]
    assert tried == [family for family in known if family in tried]
    assert len(tried) >= 90


def test_the_table_is_of_these_results():
    assert with_table(PAGE.read_text(), FOUND) == PAGE.read_text(), "run make pages"
