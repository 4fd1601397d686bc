"""The elementary functions against numpy's, to 1e-12."""

import numpy as np

from pipelines.views import exact

LOGS = ["-0x1.269621134db92p-2", "0x1.193ea7aad030bp+0"]
EXPS = ["0x1.9aa9046ec997cp-4", "0x1.5519c0d546cc0p+0"]
SIN_COS = ["0x1.326af0dcfcab1p-1", "-0x1.9a2f7ef858b7fp-1"]


def test_log() -> None:
    x = np.concatenate((np.logspace(-300, 300, 20001), np.linspace(0.5, 2, 20001), [2.0**-33, 1.0]))
    np.testing.assert_allclose(exact.log(x), np.log(x), rtol=1e-12, atol=1e-15)
    assert exact.log(1.0) == 0


def test_exp() -> None:
    x = np.linspace(-690, 690, 40001)
    np.testing.assert_allclose(exact.exp(x), np.exp(x), rtol=1e-12)
    assert exact.exp(0.0) == 1
    assert exact.exp(-1e9) == exact.exp(-700.0) > 0
    assert np.isfinite(exact.exp(1e9))


def test_sin_cos() -> None:
    x = np.linspace(-np.pi, np.pi, 40001)
    sin, cos = exact.sin_cos(x)
    np.testing.assert_allclose(sin, np.sin(x), atol=1e-12)
    np.testing.assert_allclose(cos, np.cos(x), atol=1e-12)


def test_bits_are_pinned() -> None:
    """Literal bits: a platform on which these differ shows other views."""
    assert [float(exact.log(x)).hex() for x in (0.75, 3.0)] == LOGS
    assert [float(exact.exp(x)).hex() for x in (-2.3, 0.287)] == EXPS
    assert [float(part).hex() for part in exact.sin_cos(2.5)] == SIN_COS
