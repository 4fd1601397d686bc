"""Sparse logits: the size they claim, and the error they claim, at every temperature."""

import itertools

import pytest
import torch

from kdcore.errors import Refused
from pipelines.cache.sparse import CodeSize, LogitCode, allocate, fit_levels, measured_error

TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 10.0)


def teacher_like(num: int, num_classes: int, seed: int) -> torch.Tensor:
    """Logits like a classifier's: a few dozen directions of falling variance, a peak, and noise."""
    fixed = torch.Generator().manual_seed(99)
    directions = torch.randn(60, num_classes, generator=fixed) / torch.arange(1, 61)[:, None]
    own = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, 60, generator=own) @ directions + 0.3 * torch.randn(num, num_classes, generator=own)
    peaks = torch.randint(num_classes, (num, 3), generator=own)
    return logits.scatter_add(1, peaks, 6 * torch.rand(num, 3, generator=own)) + 3.0


def nats(logits: torch.Tensor, decoded: torch.Tensor, temperature: float) -> torch.Tensor:
    p, q = (torch.softmax(x.double() / temperature, dim=1) for x in (logits, decoded))
    return (p * (p / q).log()).sum(dim=1)


@pytest.fixture(scope="module")
def code() -> LogitCode:
    return LogitCode.fit(teacher_like(2000, 300, seed=0), CodeSize(300, 48, 6))


def test_bytes_of_a_row(code):
    rows = code.encode(teacher_like(7, 300, seed=1))
    assert sum(tensor[0].numel() * tensor.element_size() for tensor in rows) == 48
    assert all(len(tensor) == 7 for tensor in rows)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_far_better_than_the_same_bytes_of_top_k(code, temperature):
    """48 bytes are 12 classes with a float16 value, the others flat at their mean."""
    logits = teacher_like(200, 300, seed=2)
    decoded = code.decode(*code.encode(logits))
    top = logits.topk(12, dim=1)
    rest = (logits.sum(dim=1) - top.values.sum(dim=1)) / (300 - 12)
    flat = rest[:, None].expand_as(logits).scatter(1, top.indices, top.values)
    assert decoded.shape == logits.shape
    assert decoded.dtype == torch.float32
    assert nats(logits, decoded, temperature).mean() < 0.5 * nats(logits, flat, temperature).mean()


def test_more_bytes_less_error():
    fit, logits = teacher_like(2000, 300, seed=0), teacher_like(200, 300, seed=2)
    errors = []
    for num_bytes in (24, 48, 96, 192):
        code = LogitCode.fit(fit, CodeSize(300, num_bytes, 4))
        errors.append([float(nats(logits, code.decode(*code.encode(logits)), t).mean()) for t in (1.0, 2.0, 4.0)])
    for more, fewer in itertools.pairwise(torch.tensor(errors)):
        assert (fewer < more).all()
    assert max(errors[-1]) < 0.01


def test_raw_logits_come_back_too(code):
    """Not only their differences: a loss may read them as they are."""
    logits = teacher_like(200, 300, seed=2)
    error = (code.decode(*code.encode(logits)) - logits).square().mean()
    assert error < 0.25 * logits.var(dim=0).mean()


def test_row_by_row(code):
    """A row's code does not depend on its batch."""
    logits = teacher_like(9, 300, seed=3)
    together, alone = code.encode(logits), code.encode(logits[4:5])
    assert all(torch.equal(a[4:5], b) for a, b in zip(together, alone, strict=True))


def test_kept_tensors_make_the_same_code(code):
    logits = teacher_like(9, 300, seed=3)
    rows = code.encode(logits)
    again = LogitCode.of(code.size, {name: tensor.clone() for name, tensor in code.tensors().items()})
    assert torch.equal(again.decode(*rows), code.decode(*rows))


def test_many_classes_take_wider_words():
    """Above 1,024 classes an index and a value need 32 bits; the largest class is corrected like any other."""
    size = CodeSize(1500, 64, 4)
    assert (size.index_bits, size.word_bits, size.value_bits, size.code_bytes) == (11, 32, 16, 64 - 2 - 16)
    logits = teacher_like(300, 1500, seed=0)
    code = LogitCode.fit(logits, size)
    logits[:, 1499] = 30.0
    logits[:, 0] = -40.0
    decoded = code.decode(*code.encode(logits))
    assert (decoded[:, 1499] - 30.0).abs().max() < 0.01
    assert decoded.argmax(dim=1).eq(1499).all()


def test_codes_are_packed_end_to_end(code):
    """Against a string of bits, the least significant first."""
    generator = torch.Generator().manual_seed(0)
    bits = code.bits.tolist()
    codes = torch.stack([torch.randint(2**b, (5,), generator=generator) for b in bits], dim=1)
    packed = code._packed(codes)
    for row, numbers in zip(packed.tolist(), codes.tolist(), strict=True):
        text = "".join(format(n, f"0{b}b")[::-1] for n, b in zip(numbers, bits, strict=True))
        text = text.ljust(8 * code.size.code_bytes, "0")
        assert row == [int(text[i : i + 8][::-1], 2) for i in range(0, len(text), 8)]
    assert torch.equal(code._unpacked(packed), codes)


def test_bits_go_where_they_save_most():
    """Against every way of giving 6 bits to 3 components."""
    distortion = [1.0, 0.36, 0.12, 0.035, 0.01, 0.0025, 0.0007]
    variances = torch.tensor([5.0, 1.0, 0.2])

    def left(bits) -> float:
        return sum(float(v) * distortion[b] for v, b in zip(variances, bits, strict=True))

    best = min((bits for bits in itertools.product(range(7), repeat=3) if sum(bits) == 6), key=left)
    assert allocate(variances, distortion, 6).tolist() == list(best)


def test_levels_of_a_normal_distribution():
    """Max's optimal quantisers (1960): 1 bit at +-0.798 with error 0.363, 2 bits at 0.453 and 1.510 with 0.1175."""
    scores = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(100_000).double() + 0.5) / 100_000)
    levels, distortion = fit_levels(scores)
    assert levels[1, :2].tolist() == pytest.approx([-0.798, 0.798], abs=2e-3)
    assert levels[2, :4].tolist() == pytest.approx([-1.510, -0.453, 0.453, 1.510], abs=4e-3)
    assert distortion[:3] == pytest.approx([1.0, 0.3634, 0.1175], abs=1e-3)


def test_the_error_that_is_told(code):
    logits = teacher_like(200, 300, seed=4)
    decoded = code.decode(*code.encode(logits))
    told = measured_error(logits, decoded)
    assert told["rows"] == 200
    for temperature in (1, 2, 4):
        assert told[f"nats at temperature {temperature}"] == pytest.approx(
            float(nats(logits, decoded, temperature).mean()), rel=1e-3
        )
    sums = [torch.softmax(x.double(), dim=1).sqrt().sum(dim=1) for x in (decoded, logits)]
    expected = (sums[0] / sums[1] - 1).abs().mean()
    assert told["relative error of power_sum at gamma 0.5"] == pytest.approx(float(expected), rel=1e-3)


def test_refusals():
    with pytest.raises(Refused, match=r"sparse_bytes=8 with cache.sparse_top=8 leaves -10 bytes"):
        CodeSize(1000, 8, 8).check()
    with pytest.raises(Refused, match="all 20 sampled views the same logits"):
        LogitCode.fit(torch.ones(20, 300), CodeSize(300, 48, 6))
