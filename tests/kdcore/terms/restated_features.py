"""Losses on features restated one sample, one value at a time, with the constants that they are compared by."""

from __future__ import annotations

import math

import numpy as np
import torch

from tests.kdcore.terms.restated import LABELS, normal

VARIANCE = normal(9, 3).exp()
CLASS_MEANS = normal(10, 5, 6)
MASKED = torch.tensor([[True, False, True], [False, False, True], [True, True, True], [False, False, False]])


def zero(teacher):
    return 0


def mean_square(s, t):
    return sum((a - b) ** 2 for a, b in zip(s.flat, t.flat, strict=True)) / s.size


def average(image, size):
    """[C,H,W] averaged over size x size equal blocks."""
    c, h, w = image.shape
    return image.reshape(c, size, h // size, size, w // size).mean(axis=(2, 4))


def plain_at(i, s, t):
    s = average(s, t.shape[1])
    vectors = [(f**2).sum(axis=0).ravel() for f in (s, t)]
    vectors = [v / math.sqrt((v**2).sum()) for v in vectors]
    return ((vectors[0] - vectors[1]) ** 2).mean()


def plain_sp(student, teacher):
    def gram(features):
        rows = [[(a * b).sum() for b in features] for a in features]
        return [[v / math.sqrt(sum(x * x for x in row)) for v in row] for row in rows]

    pairs = zip(gram(student), gram(teacher), strict=True)
    return [sum((a - b) ** 2 for a, b in zip(g, h, strict=True)) / len(student) for g, h in pairs]


def huber(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def plain_rkd(student, teacher, distance_weight=25.0, angle_weight=50.0):
    n = len(student)

    def distances(x):
        all_pairs = np.array([[math.dist(a, b) for b in x] for a in x])
        return all_pairs / (all_pairs.sum() / (n * (n - 1)))

    def angle(x, i, j, k):
        a, b = x[j] - x[i], x[k] - x[i]
        norms = math.sqrt((a @ a) * (b @ b))
        return a @ b / norms if norms > 0 else 0.0

    ds, dt = distances(student), distances(teacher)
    values = []
    for i in range(n):
        far = sum(huber(ds[i, j] - dt[i, j]) for j in range(n)) / n
        bent = [huber(angle(student, i, j, k) - angle(teacher, i, j, k)) for j in range(n) for k in range(n)]
        values.append(distance_weight * far + angle_weight * sum(bent) / n**2)
    return values


def plain_pkt(student, teacher):
    def affinity(x):
        unit = [v / (math.sqrt(v @ v) + 1e-7) for v in x]
        rows = [[(a @ b + 1) / 2 for b in unit] for a in unit]
        return [[v / sum(row) for v in row] for row in rows]

    rows = zip(affinity(teacher), affinity(student), strict=True)
    return [sum(a * math.log((a + 1e-7) / (b + 1e-7)) for a, b in zip(p, q, strict=True)) / len(p) for p, q in rows]


def plain_vid(i, s, t):
    values = [
        0.5 * ((s[c, y, x] - t[c, y, x]) ** 2 / v + math.log(v))
        for c, v in enumerate(VARIANCE.tolist())
        for y in range(t.shape[1])
        for x in range(t.shape[2])
    ]
    return sum(values) / len(values)


def plain_hcl(i, s, t):
    parts = [(1.0, mean_square(s, t))]
    parts += [(w, mean_square(average(s, n), average(t, n))) for w, n in ((0.5, 4), (0.25, 2), (0.125, 1))]
    return sum(w * v for w, v in parts) / 1.875


def plain_nd(i, s, t):
    mean = CLASS_MEANS[LABELS[i]].numpy()
    lengths = [math.sqrt(v @ v) for v in (s, t, mean)]
    return 1 - (s @ mean) / lengths[2] / max(lengths[:2])


def plain_spectral(i, s, t):
    def unit(x):
        return (x - x.min()) / (x.max() - x.min())

    def spectrum(features):
        a = unit((features**2).mean(axis=0))
        a = a - a.mean()
        h, w = a.shape
        out = np.zeros((h, w))
        for u in range(h):
            for v in range(w):
                scale = math.sqrt((1 if u == 0 else 2) / h) * math.sqrt((1 if v == 0 else 2) / w)
                out[u, v] = scale * sum(
                    a[y, x]
                    * math.cos(math.pi * (2 * y + 1) * u / (2 * h))
                    * math.cos(math.pi * (2 * x + 1) * v / (2 * w))
                    for y in range(h)
                    for x in range(w)
                )
        return unit(out)

    return math.sqrt(((spectrum(s) - spectrum(t)) ** 2).sum())


def plain_generation(i, s, t):
    return sum(((s[n] - t[n]) ** 2).sum() for n in range(3) if MASKED[i, n]) / 0.5


def plain_nce(i, s, t):
    """Column 0 is the positive; the noise of one sample is 1/20."""
    mass = (s.size - 1) / 20
    value = -math.log(s[0] / (s[0] + mass + 1e-7))
    return value - sum(math.log(mass / (n + mass + 1e-7)) for n in s[1:])
