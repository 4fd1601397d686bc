"""ViTKD and DiffKD: what their modules compute, and what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdcore.errors import Refused
from kdcore.terms import TermInputs
from kdcore.terms.diffkd import add_noise, ddim_step, signal_shares
from kdcore.terms.vitkd import generation, mimicking
from tests.kdcore.terms.restated import normal32 as normal
from tests.kdcore.terms.test_term_modules import build, setting


def vit_setting(student_width=3, tokens=9, prefix=1):
    taps = ("blocks.0", "blocks.1", "forward_features")
    student = {tap: normal(i, 4, tokens + 1, student_width) for i, tap in enumerate(taps)}
    teacher = {tap: normal(i + 9, 4, tokens + prefix, 5) for i, tap in enumerate(taps)}
    return setting(student, teacher)


def test_vitkd_is_the_weighted_sum_of_mimicking_and_generation():
    context, inputs = vit_setting(prefix=2)
    module = build({"term": "vitkd", "teacher_prefix_tokens": 2}, context)
    s = {tap: x[:, 1:] for tap, x in inputs.student_features.items()}
    t = {tap: x[:, 2:] for tap, x in inputs.teacher.features.items()}
    shallow = sum(
        mimicking(F.linear(s[tap], layer.weight, layer.bias), t[tap])
        for tap, layer in zip(("blocks.0", "blocks.1"), module.mimics, strict=True)
    )
    masked = module.draw_mask(inputs)
    tokens = F.linear(s["forward_features"], module.align.weight, module.align.bias)
    tokens[masked] = module.mask_token
    first, _, second = module.generate
    grid = tokens.reshape(4, 3, 3, 5).permute(0, 3, 1, 2)
    grid = F.conv2d(F.relu(F.conv2d(grid, first.weight, first.bias, padding=1)), second.weight, second.bias, padding=1)
    generated = grid.permute(0, 2, 3, 1).reshape(4, 9, 5)
    expected = 3e-5 * shallow + 3e-6 * generation(generated, t["forward_features"], masked, 0.5)
    torch.testing.assert_close(module(inputs), expected)


def test_vitkd_masks_the_same_number_in_each_sample_and_anew_each_epoch():
    context, inputs = vit_setting()
    module = build({"term": "vitkd", "mask_ratio": 0.3}, context)
    masked = module.draw_mask(inputs)
    assert masked.sum(dim=1).tolist() == [3, 3, 3, 3]  # 9 tokens, of which int(9 * 0.7) = 6 are kept
    assert not torch.equal(masked[0], masked[1]) or not torch.equal(masked[1], masked[2])
    later = TermInputs(**{**vars(inputs), "epoch": 1.0})
    assert not torch.equal(module.draw_mask(later), masked)


def test_vitkd_aligns_only_where_widths_differ():
    module = build({"term": "vitkd"}, vit_setting(student_width=5)[0])
    assert not any("align" in name or "mimics" in name for name, _ in module.named_parameters())


def test_vitkd_refuses_tokens_that_are_no_grid():
    with pytest.raises(Refused, match="square grid behind 1 prefix"):
        build({"term": "vitkd"}, vit_setting(tokens=8)[0])
    with pytest.raises(Refused, match="prefix_tokens"):
        build({"term": "vitkd"}, vit_setting(prefix=2)[0])


def test_the_schedule_has_its_known_ends():
    shares = signal_shares()
    assert shares[0].item() == pytest.approx(0.9999)
    assert shares[-1].item() == pytest.approx(4.0358e-5, rel=1e-3)


def test_a_ddim_step_with_the_true_noise_moves_along_the_schedule():
    clean, noise, shares = normal(1, 2, 3, 4, 4), normal(2, 2, 3, 4, 4), signal_shares()
    noisy = add_noise(clean, noise, shares[[400, 400]])
    torch.testing.assert_close(
        ddim_step(noisy, noise, shares[400], shares[300]), add_noise(clean, noise, shares[[300, 300]])
    )
    torch.testing.assert_close(ddim_step(noisy, noise, shares[400], torch.tensor(1.0)), clean, rtol=1e-4, atol=1e-5)


def test_diffkd_denoises_in_steps_from_mid_schedule_to_the_clean_map(monkeypatch):
    context, _ = setting({"forward_features": normal(1, 2, 3, 4, 4)}, {"forward_features": normal(2, 2, 6, 4, 4)})
    denoiser = build({"term": "diffkd"}, context).denoiser
    times = []

    def predict(noisy, at):
        times.append(at.tolist())
        return torch.zeros_like(noisy)

    class Levels(torch.nn.Module):
        def forward(self, _):
            return torch.tensor([[0.25, 0.75], [1.0, 0.0]])

    monkeypatch.setattr(denoiser, "predict_noise", predict)
    denoiser.finish, denoiser.match = torch.nn.Identity(), Levels()
    student, noise = normal(3, 2, 6, 4, 4), normal(4, 2, 6, 4, 4)
    refined = denoiser.refine(student, noise)
    assert times == [[400, 400], [300, 300], [200, 200], [100, 100], [0, 0]]
    start = torch.stack([0.25 * student[0] + 0.75 * noise[0], student[1]])
    torch.testing.assert_close(refined, start / signal_shares()[400].sqrt(), rtol=1e-4, atol=1e-5)


def test_diffkd_compares_with_a_latent_that_the_comparison_does_not_train():
    student, teacher = {"forward_features": normal(1, 4, 3, 4, 4)}, {"forward_features": normal(2, 4, 6, 4, 4)}
    context, inputs = setting(student, teacher)
    module = build({"term": "diffkd", "latent_channels": 2}, context)
    target, error = module.compress(teacher["forward_features"])
    assert target.shape == (4, 2, 4, 4)
    assert not target.requires_grad
    latent = module.encode(teacher["forward_features"])
    decoded = F.conv2d(latent, module.decode.weight, module.decode.bias)
    torch.testing.assert_close(error, (decoded - teacher["forward_features"]).square().mean(dim=(1, 2, 3)))
    without = build({"term": "diffkd"}, context)
    assert without.compress(teacher["forward_features"])[1].tolist() == [0, 0, 0, 0]
    assert torch.isfinite(module(inputs)).all()


def test_diffkd_noise_is_the_samples_own():
    student, teacher = {"forward_features": normal(1, 4, 3, 4, 4)}, {"forward_features": normal(2, 4, 6, 4, 4)}
    context, inputs = setting(student, teacher)
    module = build({"term": "diffkd"}, context).eval()
    assert torch.equal(module(inputs), module(inputs))
    later = TermInputs(**{**vars(inputs), "epoch": 3.0})
    assert not torch.equal(module(inputs), module(later))
