"""What is stored comes back: exactly, or within the coding's bound; and nothing is stored that nobody declared."""

import pytest
import torch

from kdcore.batch import Needs, TeacherOutputs
from kdcore.errors import Refused
from pipelines.cache.columns import Storage, columns_for
from pipelines.cache.rows import decode, encode, row_bytes, wanted
from pipelines.cache.sparse import LogitCode

SHAPES = {"layer2": (6, 3, 5), "tokens": (4, 6), "pooled": (7,)}
NEEDS = Needs(teacher_logits=True, teacher_taps=frozenset(SHAPES), teacher_input_gradient=True)


def outputs(num: int = 5, seed: int = 0) -> TeacherOutputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(num, *shape, generator=generator)

    maps = draw(*SHAPES["layer2"]).to(memory_format=torch.channels_last)
    return TeacherOutputs(
        logits=draw(11),
        features={"layer2": maps, "tokens": draw(4, 6), "pooled": draw(7)},
        input_gradient=draw(3, 8, 8),
    )


def columns(needs: Needs = NEEDS, **storage):
    return columns_for(needs, SHAPES, 11, (8, 8), Storage(**storage))


def test_float32_comes_back_to_the_bit_and_in_the_same_memory_order():
    made, original = columns(dtype="float32", features="float32"), outputs()
    again = decode(made, encode(made, original, {}), {})
    assert torch.equal(again.logits, original.logits)
    assert torch.equal(again.input_gradient, original.input_gradient)
    for tap, tensor in original.features.items():
        assert torch.equal(again.features[tap], tensor)
        assert again.features[tap].stride() == tensor.stride()


def test_float16_is_rounded_once():
    made, original = columns(), outputs()
    again = decode(made, encode(made, original, {}), {})
    assert torch.equal(again.logits, original.logits.half().float())
    assert torch.equal(again.features["layer2"], original.features["layer2"].half().float())


def test_int8_is_within_half_a_step():
    """1/254 of the row's largest value, whatever the scale of the row; a row of zeros stays one."""
    original = outputs()
    scales = torch.tensor([1e-6, 1.0, 0.0, 1e6, 3.0])
    original.features["pooled"].mul_(scales[:, None])
    made = columns(features="int8")
    again = decode(made, encode(made, original, {}), {}).features
    for tap, tensor in original.features.items():
        largest = tensor.flatten(1).abs().amax(dim=1)
        error = (again[tap] - tensor).flatten(1).abs().amax(dim=1)
        assert (error <= largest / 254 * 1.0001).all(), tap
    assert (again["pooled"][2] == 0).all()


def test_bytes_of_a_view():
    """Logits 11, map 90, tokens 24, vector 7, gradient 192."""
    assert row_bytes(columns()) == 2 * (11 + 90 + 24 + 7 + 192)
    assert row_bytes(columns(dtype="float32", features="int8")) == 4 * 11 + (90 + 4) + (24 + 4) + (7 + 4) + 4 * 192
    thousand = columns_for(Needs(teacher_logits=True), {}, 1000, (8, 8), Storage(logits="sparse"))
    assert row_bytes(thousand) == 64


def test_nothing_undeclared_is_stored():
    only = columns(Needs(teacher_taps=frozenset({"pooled"})))
    assert list(encode(only, outputs(), {})) == ["features.pooled"]
    assert columns(Needs(teacher_classifier=True)) == ()


def test_what_float16_cannot_hold_is_refused():
    original = outputs()
    original.features["layer2"][1, 0, 0, 0] = 1e5
    with pytest.raises(Refused, match=r"features.layer2 reaches 100000, which torch.float16 .* store it as float32"):
        encode(columns(), original, {})
    encode(columns(features="float32"), original, {})


def test_a_lacking_column_is_named_with_what_there_is():
    there = columns(Needs(teacher_logits=True, teacher_taps=frozenset({"pooled"})))
    needs = Needs(teacher_taps=frozenset({"layer2"}), teacher_input_gradient=True)
    with pytest.raises(Refused, match=r"holds logits, features.pooled, but the recipe reads features.layer2, input_g"):
        wanted(there, needs, "somewhere")
    assert [column.name for column in wanted(there, Needs(teacher_logits=True), "")] == ["logits"]


def test_sparse_logits_that_save_nothing_are_refused():
    with pytest.raises(
        Refused, match=r"sparse_bytes=64 saves nothing: the 11 logits .* 22 bytes .*cache.logits: dense"
    ):
        columns(logits="sparse")


@pytest.mark.parametrize("storage", [{}, {"features": "int8"}, {"dtype": "float32", "features": "float32"}])
def test_agreement_notices_a_changed_row(storage):
    """Recomputed rows agree with stored ones despite the coding, until a number changes."""
    made, original = columns(**storage), outputs()
    stored = decode(made, encode(made, original, {}), {})
    column = next(column for column in made if column.name == "features.layer2")
    fresh = original.features["layer2"] * (1 + 5e-5)
    assert column.agrees(fresh, stored.features["layer2"], 1e-4, None).all()
    stored.features["layer2"][3, 2, 1, 1] += 0.1
    assert column.agrees(fresh, stored.features["layer2"], 1e-4, None).tolist() == [True, True, True, False, True]


def test_agreement_notices_a_changed_row_of_sparse_logits():
    """They are compared as distributions: one logit that is 5 higher makes another one."""
    drawn = torch.randn(205, 100, generator=torch.Generator().manual_seed(0))
    (column,) = columns_for(Needs(teacher_logits=True), {}, 100, (8, 8), Storage(logits="sparse"))
    code = LogitCode.fit(drawn[5:], column.code_size)
    stored = column.decode(column.encode(drawn[:5], code), code)
    fresh = drawn[:5] * (1 + 1e-5)
    assert column.agrees(fresh, stored, 1e-4, code).all()
    stored[3, 7] += 5.0
    assert column.agrees(fresh, stored, 1e-4, code).tolist() == [True, True, True, False, True]
